from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image

from i2i_lightning.callbacks.previews import PreviewGrid, draw_grid, preview
from i2i_lightning.types import UserError


def test_one_grid_an_epoch_and_none_for_the_sanity_check(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer([PreviewGrid(num_samples=3)], max_epochs=2)
    trainer.fit(scripted(), datamodule=shapes(batch_size=4))
    images = sorted((tmp_path / "run/images").iterdir())
    assert [path.name for path in images] == ["epoch_0001.png", "epoch_0002.png"]
    with Image.open(images[0]) as grid:
        assert grid.mode == "RGB"
        # 16 px enlarged eight times: three columns, three rows, gutters of 2 px, a heading.
        assert grid.width == 3 * 128 + 2 * 2 + 2 * 6
        assert grid.height > 3 * 128 + 2 * 2


def test_grid_shows_the_pixels_themselves() -> None:
    rng = np.random.default_rng(0)
    samples = [
        {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("input", "output", "target")}
        for _ in range(2)
    ]
    grid = np.asarray(draw_grid(samples))
    for row, sample in enumerate(samples):
        for column, pixels in enumerate(sample.values()):
            left = 6 + column * (128 + 2)
            bottom = len(grid) - 6 - (len(samples) - 1 - row) * (128 + 2)
            tile = grid[bottom - 128 : bottom, left : left + 128]
            np.testing.assert_array_equal(tile, pixels.repeat(2, 0).repeat(2, 1))


def test_large_images_are_not_enlarged_and_sizes_may_differ() -> None:
    wide, tall = np.zeros((100, 200, 3), np.uint8), np.zeros((300, 150, 3), np.uint8)
    grid = draw_grid([{"input": wide, "output": wide}, {"input": tall, "output": tall}])
    assert grid.width == 2 * 200 + 3 + 2 * 9
    assert 100 + 400 < grid.height < 100 + 400 + 100


def test_training_is_not_disturbed(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    weights = []
    for callbacks in ([], [PreviewGrid(num_samples=2)]):
        torch.manual_seed(0)
        module = scripted()
        make_trainer(callbacks).fit(module, datamodule=shapes(batch_size=4))
        weights.append((module.state_dict(), torch.rand(1)))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_callbacks_share_one_translation(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    calls = []

    class Counts(scripted):  # type: ignore[misc]
        def preview(self, batch: Any) -> Any:
            calls.append(len(batch["real_a"]))
            return super().preview(batch)

    class Asks(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            shown = preview(trainer, 2)
            assert shown.names == ["shape_100.png", "shape_101.png"]
            assert list(shown.samples[0]) == ["input", "output", "target"]
            assert shown.samples[0]["output"].shape == (16, 16, 3)

    make_trainer([PreviewGrid(4), Asks()]).fit(Counts(), datamodule=shapes(batch_size=4))
    assert calls == [4, 4]


def test_last_epoch_has_a_grid_whatever_the_interval(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    make_trainer([PreviewGrid(1, every_n_epochs=2)], max_epochs=3).fit(scripted(), datamodule=shapes())
    names = sorted(path.name for path in (tmp_path / "run/images").iterdir())
    assert names == ["epoch_0002.png", "epoch_0003.png"]


def test_a_logger_for_pictures_receives_eight_bit_pixels(
    scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    from lightning.pytorch.loggers.logger import DummyLogger

    received = []

    class Pictures(DummyLogger):
        def log_image(self, key: str, images: Any, **kwargs: Any) -> None:
            received.append((key, images[0].dtype, images[0].ndim, kwargs["caption"]))

    make_trainer([PreviewGrid(1)], logger=Pictures(), max_epochs=1).fit(scripted(), datamodule=shapes())
    assert received == [("preview", np.uint8, 3, ["epoch 1"])]


def test_no_validation_set_is_no_error(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class NoVal(shapes):  # type: ignore[misc]
        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.val_set = None

    make_trainer([PreviewGrid()], limit_val_batches=0).fit(scripted(), datamodule=NoVal())
    assert not (tmp_path / "run/images").exists()
    assert caplog.text.count("no previews") == 1


def test_options_must_be_positive() -> None:
    with pytest.raises(UserError, match="num_samples=0"):
        PreviewGrid(0)
