from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2i_lightning.loggers.tensorboard_log import TensorBoardLog
from i2i_lightning.types import UserError


def events(folder: Path) -> Any:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def test_a_clear_error_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without_tensorboard(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(UserError, match=r"pip install 'i2i_lightning\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_curves_pictures_and_config_survive_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    log = TensorBoardLog(tmp_path)
    log.log_hyperparams({"loss": {"lambda_l1": 100}})
    for step in (9, 19, 29):
        log.log_metrics({"a": step / 8}, step=step)
    log.log_image("preview", [pixels], step=19, caption=["epoch 1"])
    log.save()  # and the process is killed
    again = TensorBoardLog(tmp_path)
    for step in (29, 39):
        again.log_metrics({"a": step / 8}, step=step)
    with pytest.raises(TypeError, match="uint8"):
        again.log_image("preview", [pixels / 255.0])
    again.finalize("success")
    log.finalize("failed")
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("a")] == [
        (step, step / 8) for step in (9, 19, 29, 39)
    ]
    (picture,) = found.Images("preview")
    assert (picture.step, picture.width, picture.height) == (19, 30, 20)
    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    np.testing.assert_array_equal(shown, pixels)
    (text,) = found.Tensors("config/text_summary")
    assert b"lambda_l1: 100" in text.tensor_proto.string_val[0]
