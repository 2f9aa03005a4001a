"""Callbacks around a method that makes images from noise: no input, no target, no pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch import Tensor, nn

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.comparison import ComparisonTable
from i2i_lightning.callbacks.gallery import Gallery
from i2i_lightning.callbacks.health import Health
from i2i_lightning.callbacks.previews import PreviewGrid, draw_sheet
from i2i_lightning.callbacks.throughput import Throughput
from i2i_lightning.callbacks.toyfaces import ToyFacesReport
from i2i_lightning.callbacks.validation import ValidationMetrics
from i2i_lightning.data.toyfaces.images import ToyFacesImagesDataModule
from i2i_lightning.metrics.judge_distance import judge_distance
from i2i_lightning.sweeps.strips import newest_preview
from i2i_lightning.types import UserError


class FromNoise(LightningModule):
    """One convolution over noise; images are what it makes of seeds, or what a test says."""

    directions: ClassVar[dict[str, str]] = {}

    def __init__(self, made: Tensor | None = None, terms: dict[str, float] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Conv2d(3, 3, 3, padding=1)
        self.players = {"generator": [self.generator]}
        self.made = made
        self.terms = terms or {"generator/gan": 0.7, "generator/total": 0.7}
        self.step_terms: dict[str, Tensor] = {}
        self.batches_seen = 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.generator.parameters(), lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(
            (self.generator(torch.randn_like(batch["real"])) - batch["real"]).square().mean()
        )
        optimizer.step()
        self.step_terms = {key: torch.tensor(value) for key, value in self.terms.items()}
        self.batches_seen += 1

    def images(self, like: Tensor) -> Tensor:
        if self.made is not None:
            return self.made[: len(like)]
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return torch.tanh(self.generator(noise))

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"fake_b": self.images(batch["real"]), "real_b": batch["real"]}

    test_step = validation_step

    def preview(self, batch: Any) -> dict[str, Tensor]:
        images = self.images(batch["real"])
        return {"truncated": 0.5 * images, "output": images}


def faces(**options: Any) -> ToyFacesImagesDataModule:
    settings = {"crop_px": 32, "num_train": 6, "num_val": 5, "num_test": 4, "batch_size": 3, **options}
    return ToyFacesImagesDataModule(**{"val_batch_size": 2, **settings})


def test_previews_are_sheets_of_the_same_noise(make_trainer: Any, tmp_path: Path) -> None:
    module = FromNoise()
    make_trainer([PreviewGrid(5)]).fit(module, datamodule=faces())
    found = newest_preview(tmp_path / "run")
    assert found is not None
    assert (found.epoch, found.columns) == (2, ["truncated", "output"])
    assert list(found.rows) == [f"sample {number}" for number in range(1, 6)]
    images = module.images(torch.empty(5, 3, 32, 32)).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1)
    for tiles, expected in zip(found.rows.values(), images.numpy(), strict=True):
        np.testing.assert_array_equal(np.asarray(tiles["output"]), expected)
    with Image.open(tmp_path / "run/images/epoch_0002.png") as sheet:
        # Two blocks of three by two, enlarged twice.
        assert sheet.width == 2 * (3 * 64 + 2 * 2) + 6 + 2 * 6
        assert 2 * 64 < sheet.height < 3 * 64


def test_a_sheet_shows_the_pixels_themselves() -> None:
    rng = np.random.default_rng(0)
    samples = [{"output": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)} for _ in range(7)]
    sheet = draw_sheet(samples)
    boxes = [row[0] for row in sheet.info["tiles"]["boxes"]]
    assert len({(x, y) for x, y, _, _ in boxes}) == 7
    assert len({x for x, _, _, _ in boxes}) == 3
    for sample, (x, y, width, height) in zip(samples, boxes, strict=True):
        np.testing.assert_array_equal(np.asarray(sheet.crop((x, y, x + width, y + height))), sample["output"])


def test_the_page_shows_samples_over_the_epochs_and_curves(make_trainer: Any, tmp_path: Path) -> None:
    callbacks = [
        ValidationMetrics(["judge_distance"], kid_subset_size=4),
        PreviewGrid(4),
        Gallery(monitor="val/judge_distance"),
        Checkpoints(monitor="val/judge_distance"),
        Throughput(),
    ]
    make_trainer(callbacks, max_epochs=3).fit(FromNoise(), datamodule=faces())
    page = (tmp_path / "run/index.html").read_text()
    assert "the same noise each time" in page
    assert page.count("alt='sample 1'") == 2
    assert "<th>1</th><th>2</th><th>3</th></tr>" in page
    assert "src=''" not in page
    assert "input" not in page.partition("<body>")[2].partition("Curves")[0]
    assert "val/judge_distance" in page
    assert "generator gan" in page
    assert "18</b><span>images seen" in page
    assert (tmp_path / "run/checkpoints/best.ckpt").exists()


class TakesTables(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "tables"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_table(self, key: str, **table: Any) -> None:
        self.tables.append(table)


def test_the_table_has_pictures_alone(make_trainer: Any) -> None:
    logger = TakesTables()
    make_trainer([ComparisonTable(3)], logger=logger, max_epochs=1).fit(FromNoise(), datamodule=faces())
    assert logger.tables[0]["columns"] == ["epoch", "name", "truncated", "output"]
    assert [row[1] for row in logger.tables[0]["data"]] == ["sample 1", "sample 2", "sample 3"]


def test_collapse_is_told_by_real_images(make_trainer: Any) -> None:
    health = Health(num_samples=4)
    flat = torch.full((5, 3, 32, 32), 0.2)
    make_trainer([health]).fit(FromNoise(flat), datamodule=faces())
    (warning,) = health.warnings
    assert warning["kind"] == "collapse"
    assert "whatever the noise (outputs differ by 0.000, real images by" in warning["text"]
    assert "a higher loss.lambda_r1" in warning["text"]
    fine = Health(num_samples=4)
    make_trainer([fine]).fit(FromNoise(2 * torch.rand(5, 3, 32, 32) - 1), datamodule=faces())
    assert not fine.warnings


def test_the_report_on_toy_faces_stands_aside(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer([ToyFacesReport()], max_epochs=1)
    trainer.fit(FromNoise(), datamodule=faces())
    assert not (tmp_path / "run/report.json").exists()
    assert "val/judge_iou" not in trainer.callback_metrics


@pytest.mark.parametrize("stage", ["val", "test"])
def test_sets_are_compared(make_trainer: Any, stage: str) -> None:
    data = faces(num_val=5, num_test=5)
    made = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1

    class Stepwise(FromNoise):
        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            start = 2 * batch_idx
            return {"fake_b": made[start : start + len(batch["real"])], "real_b": batch["real"]}

        test_step = validation_step

    trainer = make_trainer([ValidationMetrics(["judge_distance"], kid_subset_size=3)])
    run = trainer.validate if stage == "val" else trainer.test
    run(Stepwise(), datamodule=data, verbose=False)
    dataset = getattr(data, f"{stage}_set")
    real = torch.stack([dataset[0, index]["real"] for index in range(5)])
    shown = made.add(1).mul(127.5).round().byte()
    expected = judge_distance(shown, real, 3)
    found = (trainer.callback_metrics[f"{stage}/judge_distance{suffix}"] for suffix in ("", "_std"))
    assert tuple(map(float, found)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("metrics", [["l1"], ["judge_distance", "psnr", "mean_iou"]])
def test_metrics_of_pairs_are_refused(make_trainer: Any, metrics: list[str]) -> None:
    trainer = make_trainer([ValidationMetrics(metrics, palette="toyfaces")])
    with pytest.raises(UserError) as slip:
        trainer.fit(FromNoise(), datamodule=faces())
    paired = ", ".join(name for name in metrics if name != "judge_distance")
    assert str(slip.value) == (
        f"callbacks.validation.metrics: {paired} compare an output with its target, and FromNoise has no "
        "inputs; give any of judge_distance, kid, fid, or []"
    )


def test_the_judge_is_refused_where_it_knows_nothing(make_trainer: Any, scripted: Any, shapes: Any) -> None:
    for module, data in ((FromNoise(), faces(kind="regions")), (scripted(), shapes())):
        trainer = make_trainer([ValidationMetrics(["judge_distance"])])
        with pytest.raises(UserError, match="judge_distance knows toy faces alone"):
            trainer.fit(module, datamodule=data)


def test_no_metrics_at_all(make_trainer: Any) -> None:
    trainer = make_trainer([ValidationMetrics([])], max_epochs=1)
    trainer.fit(FromNoise(), datamodule=faces())
    assert not trainer.callback_metrics
