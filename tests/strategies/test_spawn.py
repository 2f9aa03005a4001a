"""``trainer=ddp_spawn`` from the console: it may sweep, and a process that fails is one message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from i2i_lightning.checkpoints.io import read_checkpoint

SMALL = [
    "method=pix2pix",
    "data.crop_px=32",
    "data.num_train=8",
    "data.num_val=3",
    "data.batch_size=2",
    "generator.base_channels=4",
    "discriminator.base_channels=4",
    "trainer=ddp_spawn",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.max_epochs=1",
    "callbacks.toyfaces=null",
]


@pytest.mark.ddp
def test_a_sweep_of_which_one_job_fails(tmp_path: Path, checkout: Path) -> None:
    command = [sys.executable, "-m", "i2i_lightning.commands.train", *SMALL]
    done = subprocess.run(
        [*command, "--multirun", "optimizer.lr=2e-4,1e30", "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"], "the processes sweep nothing themselves"
    assert read_checkpoint(tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt")["batches_seen"] == 2
    assert not (tmp_path / "sweep" / "1" / "checkpoints").exists()
    assert done.stdout.count("epoch 1/1") == 2
    said = "4 images per step: 2 per device, 2 devices, 1 accumulated; learning rate"
    assert [line for line in done.stdout.splitlines() if "per device" in line] == [
        f"{said} 0.0002",
        f"{said} 1e+30",
    ]
    lines = done.stderr.splitlines()
    assert lines[0].startswith("i2i-train: job 1 failed: the loss is not finite in epoch 1, batch 1: ")
    # Why, and what to do; then the summary at the end of the sweep.
    assert [line.partition(":")[0] for line in lines[3:]] == ["i2i-train", "  sweep/1"], done.stderr
