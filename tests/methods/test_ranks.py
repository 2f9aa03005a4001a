"""How the processes of one run part."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.mark.parametrize("leaves", [True, False])
def test_a_process_leaves_its_group_before_python_ends(leaves: bool, tmp_path: Path) -> None:
    code = f"""
        import multiprocessing.util, os
        import torch.distributed as dist
        from i2i_lightning.methods.ranks import leave_at_exit
        multiprocessing.util.Finalize(None, lambda: print(dist.is_initialized()), exitpriority=0)
        dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
        if {leaves}:
            leave_at_exit(os.getpid())
        raise SystemExit(7)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, f"{not leaves}\n"), done.stderr
