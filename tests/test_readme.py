"""The README is finished: every picture that it shows is there, and no blank is left to fill in."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).is_file()]
    assert not missing


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_the_commands_that_are_run_are_there() -> None:
    for mark in ("ci:quickstart", "ci:tests"):
        assert re.search(rf"<!-- {mark} -->\n```bash\n[^`]+\n```", README)
