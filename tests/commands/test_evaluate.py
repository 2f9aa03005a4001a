"""``i2i-evaluate`` from the command line, on a run that ``i2i-train`` made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2i_lightning.commands import evaluate, train
from i2i_lightning.metrics import inception

METRICS = "metrics=[l1,psnr]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two batches of tiny networks on tiny faces."""
    run = tmp_path_factory.mktemp("evaluate") / "run"
    status = train.APP.main(
        [
            "data.crop_px=32",
            "data.num_train=8",
            "data.num_val=2",
            "data.num_test=5",
            "data.batch_size=4",
            "generator.base_channels=2",
            "discriminator.base_channels=2",
            "discriminator.num_layers=1",
            "trainer=cpu",
            "trainer.max_epochs=1",
            "trainer.enable_progress_bar=false",
            "callbacks.toyfaces.report=false",
            f"hydra.run.dir={run}",
        ]
    )
    assert status == 0
    return run


def test_a_run_is_measured_on_its_own_data(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.APP.main([f"run={trained}", METRICS, "seeds=[0,1]"]) == 0
    report = json.loads((trained / "evaluation/test_last/metrics.json").read_text(encoding="utf-8"))
    assert report["data"]["task"] == "regions_to_photo"
    found = report["directions"]["ab"]
    assert found["images"] == 5
    assert found["sizes_px"] == [[32, 32]]
    assert report["checkpoint"].endswith("checkpoints/last.ckpt")
    assert set(found["figures"]) == {"outputs", "copied input", "real targets"}
    assert {"mean", "std"} == set(found["figures"]["outputs"]["psnr"])
    assert found["protocol"]["psnr"]["better"] == "higher"
    assert len(found["per_seed"]) == 2
    table = capsys.readouterr().out
    assert "5 images of test, 32x32 px" in table
    assert "copied input" in table
    with Image.open(trained / "evaluation/test_last/samples.png") as samples:
        assert samples.width > 3 * 32


def test_a_checkpoint_knows_its_run_and_the_split_is_free(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    words = [f"checkpoint={checkpoint}", METRICS, "split=val", f"output={tmp_path / 'here'}", "max_images=1"]
    assert evaluate.APP.main(words) == 0
    report = json.loads((tmp_path / "here/metrics.json").read_text(encoding="utf-8"))
    assert (report["split"], report["directions"]["ab"]["images"]) == ("val", 1)


def test_values_of_the_data_may_change(trained: Path, tmp_path: Path) -> None:
    words = [f"run={trained}", METRICS, "data.num_test=3", f"output={tmp_path}"]
    assert evaluate.APP.main(words) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["directions"]["ab"]["images"] == 3


class Means(torch.nn.Module):
    """Three features that need no weights: the mean of each channel."""

    def __init__(self, folder: object = None) -> None:
        super().__init__()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(2).mean(2) / 255


def test_both_directions_of_a_cycle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = [
        "method=cyclegan",
        "generator=resnet_6",
        "generator.num_blocks=1",
        "generator.base_channels=2",
        "discriminator.base_channels=2",
        "discriminator.num_layers=1",
        "data.crop_px=32",
        "data.num_train_a=3",
        "data.num_train_b=3",
        "data.num_val=1",
        "data.num_test=11",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
        f"hydra.run.dir={run}",
    ]
    assert train.APP.main(words) == 0
    assert evaluate.APP.main([f"run={run}", "metrics=[]"]) == 0
    report = json.loads((run / "evaluation/test_last/metrics.json").read_text(encoding="utf-8"))
    assert list(report["directions"]) == ["ab", "ba"]
    for found in report["directions"].values():
        assert found["images"] == 11
        assert {"judge_style", "rank_first", "background_change", "cycle_l1"} <= set(
            found["figures"]["outputs"]
        )
        assert found["figures"]["real targets"]["rank_first"]["mean"] == 1.0
    table = capsys.readouterr().out
    assert "a to b" in table
    assert "b to a" in table

    monkeypatch.setattr(inception, "InceptionFeatures", Means)
    words = [f"run={run}", "metrics=[kid]", "data.num_train_a=7", "data.epoch=b"]
    assert evaluate.APP.main([*words, f"output={tmp_path / 'kid'}"]) == 0
    found = json.loads((tmp_path / "kid/metrics.json").read_text(encoding="utf-8"))["directions"]
    counts = {direction: result["protocol"]["kid"] for direction, result in found.items()}
    assert [counts[direction]["num_train_targets"] for direction in ("ab", "ba")] == [3, 7]
    assert [counts["ab"][name] for name in ("num_outputs", "num_targets")] == [11, 11]
    assert set(found["ab"]["figures"]["train targets"]) == {"kid"}
    assert (run / "evaluation/test_last/samples_ba.png").is_file()
    assert evaluate.APP.main([f"run={run}", "metrics=[]", "direction=ba", f"output={tmp_path}"]) == 0
    one = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["directions"]
    assert list(one) == ["ba"]
    assert "cycle_l1" not in one["ba"]["figures"]["outputs"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "run=<run folder>, or checkpoint=<file>"),
        (["run=nowhere"], "run=nowhere: not a run folder"),
        (["checkpoint=lonely.pth"], "data=paired"),
        (["run=RUN", "split=tests"], "split=tests: choose one of train, val, test"),
        (["run=RUN", "metrics=[psrn]"], "no metric psrn"),
        (["run=RUN", "metrics=[kid]", "weights=EMPTY"], "i2i-weights get fid_inception"),
        (["run=RUN", "seeds=[]"], "seeds=[]: give at least one"),
        (["run=RUN", "max_images=0"], "max_images=0: give at least 1"),
        (["run=RUN", "data.num_tests=3"], "data.num_tests: no such key"),
        (["run=RUN", "device=tpu"], "device=tpu"),
        (["run=RUN", "sead=3"], "sead: no such key"),
    ],
)
def test_slips_take_a_line(
    words: list[str],
    says: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = [word.replace("RUN", str(trained)).replace("EMPTY", str(tmp_path / "empty")) for word in words]
    assert evaluate.APP.main(given) == 1
    told = capsys.readouterr().err.strip()
    assert says in told
    assert len(told.splitlines()) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_unwritable_folder_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert evaluate.APP.main([f"run={trained}", METRICS, f"output={tmp_path / 'file' / 'here'}"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "cannot be written" in error[0]


def test_the_config_of_another_project_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("data: {root: /x}")
    (tmp_path / "latest_net_G.pth").write_bytes(b"PK")
    assert evaluate.APP.main([f"checkpoint={tmp_path / 'latest_net_G.pth'}"]) == 1
    assert "Traceback" not in capsys.readouterr().err
