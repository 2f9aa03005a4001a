"""A SLURM of two nodes on this host, for as long as the tests of this folder run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def slurm(checkout: Path) -> Iterator[Path]:
    """Start it, and point every SLURM program at it; skip where that is not possible. Its folder."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can start a SLURM")
    folder = Path(tempfile.mkdtemp(prefix="i2i-slurm-"))  # a socket's path has to be short
    start = [str(HERE / "start.sh"), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        try:
            done = subprocess.run(start, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"no SLURM: {' '.join(done.stderr.split())[-300:]}")
            for name in list(os.environ):
                if name.startswith(("SLURM_", "SBATCH_")):
                    patch.delenv(name)
            patch.setenv("SLURM_CONF", done.stdout.strip())
            patch.setenv("PYTHONPATH", str(checkout))
            patch.setenv("OMP_NUM_THREADS", "1")
            yield folder
        finally:
            subprocess.run([str(HERE / "stop.sh"), str(folder)], timeout=120, check=False)
            shutil.rmtree(folder, ignore_errors=True)
