from __future__ import annotations

from typing import Any

import pytest
import torch

from i2i_lightning.callbacks.validation import MAX_PSNR_DB, ValidationMetrics
from i2i_lightning.metrics.image import l1, psnr, ssim
from i2i_lightning.types import UserError


@pytest.mark.parametrize("val_batch_size", [1, 2, 5])
def test_means_are_over_images_whatever_the_batches(
    val_batch_size: int, scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    trainer = make_trainer([ValidationMetrics()])
    module = scripted(output=lambda real_a: real_a * 0.9)
    data = shapes(num_val=5, val_batch_size=val_batch_size)
    trainer.validate(module, datamodule=data, verbose=False)
    batch = data.preview_batch(5)
    fake_b = batch["real_a"] * 0.9
    shown = (
        data.display_output(fake_b, batch["real_a"]),
        data.display_output(batch["real_b"], batch["real_a"]),
    )
    expected = {
        "val/l1": l1(fake_b, batch["real_b"]).mean(),
        "val/psnr": psnr(*shown).mean(),
        "val/ssim": ssim(*shown).mean(),
    }
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def test_metrics_can_be_monitored_while_training_and_tested(
    scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    trainer = make_trainer([ValidationMetrics(["l1"])])
    module, data = scripted(), shapes()
    trainer.fit(module, datamodule=data)
    assert set(trainer.callback_metrics) == {"val/l1"}
    trainer.test(module, datamodule=data, verbose=False)
    assert set(trainer.callback_metrics) == {"test/l1"}


def test_an_equal_image_does_not_make_the_mean_infinite(
    scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    class Copies(scripted):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"real_a": batch["real_a"], "fake_b": batch["real_b"], "real_b": batch["real_b"]}

    trainer = make_trainer([ValidationMetrics()])
    trainer.validate(Copies(), datamodule=shapes(), verbose=False)
    assert trainer.callback_metrics["val/psnr"] == MAX_PSNR_DB
    torch.testing.assert_close(trainer.callback_metrics["val/ssim"], torch.tensor(1.0))


def test_errors(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    with pytest.raises(UserError, match="no metric lpips; there is l1, psnr, ssim"):
        ValidationMetrics(["l1", "lpips"])
    with pytest.raises(UserError, match=r"8x8; give callbacks.validation.metrics=\[l1,psnr\]"):
        make_trainer([ValidationMetrics()]).validate(scripted(), datamodule=shapes(px=8), verbose=False)
