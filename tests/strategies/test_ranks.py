"""How the first process of a run ends it when another one has died."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

CODE = """
    import subprocess, sys
    from types import SimpleNamespace
    from i2i_lightning.strategies import ranks

    ranks.GRACE_S = ranks.WATCH_S = 0.05
    died = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    watch = ranks._Watch(SimpleNamespace(kill=lambda signum: print("killed", int(signum), flush=True)))
    watch.follow([died])
    watch.join()
"""


@pytest.mark.parametrize("read", [True, False])
def test_the_death_of_one_ends_all_whoever_reads_of_it(read: bool) -> None:
    reader, writer = os.pipe()
    if not read:
        os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CODE)],
            stdout=subprocess.PIPE,
            stderr=writer,
            timeout=100,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout) == (1, b"killed 9\n")
    if read:
        with open(reader, encoding="utf-8") as file:
            assert file.read() == (
                "process 1 of this run died (exit status 3); the others end too, and the last checkpoint is "
                "kept\n"
            )
