"""The ToyFaces report: right numbers for known outputs, and a fit that does not notice it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from i2i_lightning.callbacks.toyfaces import ToyFacesReport, table
from i2i_lightning.data.toyfaces.module import ToyFacesDataModule
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import UserError

ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


def module(task: str = "regions_to_photo", **options: Any) -> ToyFacesDataModule:
    settings = {"crop_px": 32, "num_train": 8, "num_val": 4, "num_test": 6, "batch_size": 4, **options}
    return ToyFacesDataModule(task, **settings)


def fit(tmp_path, data, generator: nn.Module | None = None, callbacks: Any = None, epochs: int = 1) -> Any:
    torch.manual_seed(0)
    built = generator or UNet(data.in_channels, data.out_channels, num_downs=5, base_channels=4)
    discriminator = PatchGAN(data.in_channels + data.out_channels, base_channels=4, num_layers=1)
    method = Pix2Pix(built, discriminator, Pix2PixLoss(), ADAM)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ToyFacesReport(num_val_faces=4)] if callbacks is None else callbacks,
    )
    trainer.fit(method, datamodule=data)
    return trainer


class Copy(nn.Module):
    """Returns its input; one weight lets it be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 0 * self.shift


def test_report_of_a_copy(tmp_path, capsys):
    trainer = fit(tmp_path, module(), Copy())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["judge"]["outputs"] == report["judge"]["copied_input"]
    assert report["pixel_error"]["outputs"] == pytest.approx(report["pixel_error"]["copied_input"], abs=1e-4)
    levels = report["pixel_error"]["class_means"]
    assert levels["of_minus_1_to_1"] == pytest.approx(levels["of_255"] / 127.5)
    outputs, real = report["judge"]["outputs"]["iou"], report["judge"]["real"]["iou"]
    assert report["iou_ratio"] == pytest.approx(outputs / real)
    assert report["judge"]["real"]["photo_probability"] > report["judge"]["outputs"]["photo_probability"]
    assert 0 <= float(trainer.callback_metrics["val/judge_iou"]) <= 1
    printed = capsys.readouterr().out
    assert "mean pixel error of 255" in printed
    assert table(report) in printed
    assert "NaN" not in (tmp_path / "report.json").read_text()


def test_baselines_by_hand(tmp_path):
    data = module()
    fit(tmp_path, data, Copy())
    report = json.loads((tmp_path / "report.json").read_text())
    colours = torch.from_numpy(data.train_set.class_colours).float().round()
    copied, painted = [], []
    for index in range(6):
        item = data.test_set[0, index]
        photo = item["real_b"].float()
        copied.append((item["real_a"].float() - photo).abs().mean())
        painted.append((colours[item["parsing"]].permute(2, 0, 1) - photo).abs().mean())
    assert report["pixel_error"]["copied_input"]["of_255"] == pytest.approx(float(sum(copied)) / 6, abs=1e-3)
    assert report["pixel_error"]["class_means"]["of_255"] == pytest.approx(float(sum(painted)) / 6, abs=1e-3)
    assert set(report["sharpness"]) == {"outputs", "copied_input", "class_means"}


@pytest.mark.parametrize("task", ["grey_to_colour_lab", "parsing_to_photo", "photo_to_cartoon"])
def test_other_tasks_are_reported(tmp_path, task):
    fit(tmp_path, module(task))
    report = json.loads((tmp_path / "report.json").read_text())
    style = "cartoon" if task == "photo_to_cartoon" else "photo"
    assert 0 <= report["judge"]["outputs"][f"{style}_probability"] <= 1


def test_a_parsing_is_compared_without_the_judge(tmp_path, capsys):
    trainer = fit(tmp_path, module("photo_to_parsing"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert "judge" not in report
    assert 0 <= report["parsing"]["iou"] <= 1
    assert "val/parsing_iou" in trainer.callback_metrics
    assert "parsing IoU" in capsys.readouterr().out


def test_the_fit_does_not_notice(tmp_path):
    ends = []
    for folder, callbacks in (("with", [ToyFacesReport(num_val_faces=2)]), ("without", [])):
        trainer = fit(tmp_path / folder, module(), callbacks=callbacks, epochs=2)
        ends.append((trainer.lightning_module.state_dict(), torch.get_rng_state()))
    (first, rng), (second, other_rng) = ends
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert torch.equal(rng, other_rng)


def test_switches(tmp_path):
    trainer = fit(tmp_path, module(), callbacks=[ToyFacesReport(num_val_faces=0, report=False)])
    assert not (tmp_path / "report.json").exists()
    assert "val/judge_iou" not in trainer.callback_metrics
    with pytest.raises(UserError, match=r"callbacks.toyfaces.num_val_faces=-1"):
        ToyFacesReport(num_val_faces=-1)
