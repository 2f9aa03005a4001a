"""W&B away from the user's account and folders, and its own inspector to read a run back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Records = list[dict[str, Any]]


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))


class Parts:
    """What W&B wrote of one run: every record of each of its parts, in the order in which they began."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
        self.records = [inspect(file) for file in self.files]

    def of(self, kind: str) -> Records:
        return [record[kind] for part in self.records for record in part if record["type"] == kind]

    @property
    def rows(self) -> Records:
        return [row["item"] for row in self.of("history")]

    @property
    def exit_codes(self) -> list[int]:
        return [record.get("exit_code", 0) for record in self.of("exit")]

    def media(self, name: str) -> Path:
        (file,) = (path for part in self.files if (path := part.parent / "files" / name).is_file())
        return file


def inspect(file: Path) -> Records:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def parts() -> Callable[[Path], Parts]:
    pytest.importorskip("wandb")
    return Parts
