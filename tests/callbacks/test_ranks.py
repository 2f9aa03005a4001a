"""Over several processes every figure is that of one, and every file is written once."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.ddp


@pytest.fixture
def unpaired(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for side, count in (("A", 5), ("B", 3)):
        for split in ("train", "val"):
            folder = tmp_path / "sets" / f"{split}{side}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "sets"


@pytest.mark.parametrize("ranks", [2, 3])
def test_figures_are_those_of_one_process(
    ranks: int, unpaired: Path, tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = checkout / "tests" / "callbacks" / "measured.py"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(checkout),
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(unpaired), str(tmp_path / f"{rank}.json")],
            env=environment | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        measured = runpy.run_path(str(script))
        monkeypatch.setattr("i2i_lightning.metrics.inception.InceptionFeatures", measured["TinyFeatures"])
        alone = measured["cases"](unpaired)
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(errors)[-3000:]
    assert set(alone["pairs in 2s"]) == {
        *(f"val/{name}" for name in ("l1", "psnr", "ssim", "fid", "kid", "kid_std")),
        *(f"val/{name}" for name in ("pixel_accuracy", "class_accuracy", "mean_iou", "judge_iou")),
    }
    assert "val/kid_ba" in alone["sets in 3s"]
    for rank in range(ranks):
        assert json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) == alone


def test_files_are_written_once(tmp_path: Path, checkout: Path) -> None:
    words = [
        "data.crop_px=32",
        "data.num_train=8",
        "data.num_val=3",
        "data.num_test=2",
        "data.batch_size=2",
        "generator.base_channels=4",
        "discriminator.base_channels=4",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "method=pix2pix",
        "hydra.run.dir=run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "i2i_lightning.commands.train", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "images").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    assert {path.name for path in run.iterdir()} >= {"index.html", "report.json", "metrics.csv"}
    assert not list(run.rglob("*.tmp"))
    assert done.stdout.count("Gallery: run/index.html") == 1
    assert done.stdout.count("IoU of the outputs") == 1, "the report is printed once"
    rows = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    # A header, two batches in each of two epochs, and nothing twice.
    assert [row.split(",")[0] for row in rows] == ["step", "0", "1", "2", "3"]
