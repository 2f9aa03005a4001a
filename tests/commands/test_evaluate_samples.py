"""``i2i-train method=stylegan2`` and ``i2i-evaluate`` on what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from i2i_lightning.commands import evaluate, train

TINY = [
    "method=stylegan2",
    "data.crop_px=16",
    "data.num_train=8",
    "data.num_val=4",
    "data.num_test=5",
    "data.batch_size=4",
    "data.label=glasses",
    "generator.channel_base=64",
    "generator.channel_max=8",
    "generator.z_dim=8",
    "generator.w_dim=8",
    "generator.mapping_layers=2",
    "discriminator.channel_base=64",
    "discriminator.channel_max=8",
    "discriminator.mapping_layers=2",
    "callbacks.validation.metrics=[judge_distance]",
    "callbacks.checkpoints.monitor=val/judge_distance",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train four batches of tiny networks on tiny faces."""
    run = tmp_path_factory.mktemp("samples") / "run"
    assert train.APP.main([*TINY, f"hydra.run.dir={run}"]) == 0
    return run


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "weights"))


def test_a_run_leaves_sheets_curves_and_its_best(trained: Path) -> None:
    page = (trained / "index.html").read_text(encoding="utf-8")
    assert "the same noise each time" in page
    assert "val/judge_distance" in page
    assert "finished" in page
    for name in ("images/epoch_0001.png", "images/epoch_0002.png", "checkpoints/best.ckpt"):
        assert (trained / name).is_file()
    assert not (trained / "report.json").exists()


def test_samples_are_measured_against_the_test_split(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.APP.main([f"run={trained}", "seeds=[0,1]", "device=cpu"]) == 0
    folder = trained / "evaluation/test_last"
    report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (report["generator"], report["averaged"]) == ("a checkpoint of i2i_lightning", True)
    found = report["directions"]["samples"]
    assert (found["images"], found["sizes_px"]) == (5, [[16, 16]])
    assert set(found["figures"]) == {"outputs", "train images"}
    assert set(found["figures"]["outputs"]["judge_distance"]) == {"mean", "std"}
    table = capsys.readouterr().out
    assert "5 images of test, 16x16 px" in table
    assert "judge distance" in table
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width > 3 * 64  # five samples, three in a row
    again = trained / "again"
    assert evaluate.APP.main([f"run={trained}", "seeds=[0,1]", "device=cpu", f"output={again}"]) == 0
    assert json.loads((again / "metrics.json").read_text())["directions"]["samples"] == found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["metrics=[psnr]"], "metrics: psnr compare an output with its target"),
        (["metrics=[kid]"], "i2i-weights get fid_inception"),
        (["direction=ab"], "leave direction out"),
        (["data=toyfaces", "data.crop_px=16"], "give one set of images to compare with"),
        (["data.crop_px=32"], "has (16, 16), the data (32, 32)"),
        (["data.label=null", "data.label_dim=0"], "data.label_dim: "),
    ],
)
def test_slips_take_a_line(
    words: list[str], says: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.APP.main([f"run={trained}", f"output={tmp_path / 'here'}", "device=cpu", *words]) == 1
    told = capsys.readouterr().err.strip()
    assert says in told
    assert len(told.splitlines()) <= 3
    assert not (tmp_path / "here").exists()
