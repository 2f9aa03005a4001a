"""Weights that are none, and the loss of another method: one line each, before anything is built."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from i2i_lightning.methods.cyclegan import CycleGANLoss
from i2i_lightning.methods.inversion import InversionLoss
from i2i_lightning.methods.pix2pix import Pix2PixLoss
from i2i_lightning.methods.stylegan2 import StyleGAN2Loss
from i2i_lightning.types import UserError
from tests.methods import runs


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (Pix2PixLoss, "lambda_l1"),
        (Pix2PixLoss, "lambda_gp"),
        (CycleGANLoss, "lambda_cycle_b"),
        (CycleGANLoss, "lambda_identity"),
        (StyleGAN2Loss, "lambda_r1"),
        (partial(InversionLoss, None), "lambda_prior"),
    ],
)
def test_a_weight_is_0_or_more(loss: Any, name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^loss\.{name}={value}: a weight is a finite number, 0 or more$"):
        loss(**{name: value})


@pytest.mark.parametrize(
    ("build", "loss", "message"),
    [
        (runs.pix2pix, CycleGANLoss(), "loss: this method takes loss=pix2pix, not a CycleGANLoss"),
        (runs.cyclegan, Pix2PixLoss(), "loss: this method takes loss=cyclegan, not a Pix2PixLoss"),
    ],
)
def test_a_method_takes_its_own_loss(build: Any, loss: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(loss=loss)
    assert str(caught.value) == message
