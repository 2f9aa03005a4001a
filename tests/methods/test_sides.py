"""Methods refuse data that has other sides than they need, before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from i2i_lightning.data.toyfaces.images import ToyFacesImagesDataModule
from i2i_lightning.data.toyfaces.module import ToyFacesDataModule
from i2i_lightning.data.toyfaces.unpaired import ToyFacesUnpairedDataModule
from i2i_lightning.methods.base import Method
from i2i_lightning.methods.cyclegan import CycleGAN
from i2i_lightning.methods.pix2pix import Pix2Pix
from i2i_lightning.methods.stylegan2 import StyleGAN2
from i2i_lightning.types import UserError

ONE_SIDE = ToyFacesImagesDataModule(crop_px=32)
PAIRS = ToyFacesDataModule(crop_px=32)
SETS = ToyFacesUnpairedDataModule(crop_px=32)


def set_up(kind: type[Method], data: Any) -> None:
    method = kind.__new__(kind)
    super(Method, method).__init__()
    method.players = {}
    method.trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    Method.setup(method, "fit")


@pytest.mark.parametrize(
    ("kind", "data"), [(Pix2Pix, PAIRS), (CycleGAN, SETS), (CycleGAN, PAIRS), (StyleGAN2, ONE_SIDE)]
)
def test_fitting_data_pass(kind: type[Method], data: Any) -> None:
    set_up(kind, data)
    set_up(kind, SimpleNamespace())  # what is no data module of ours is its user's to know


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        (
            Pix2Pix,
            ONE_SIDE,
            "data: Pix2Pix translates one side of the data into the other",
        ),
        (CycleGAN, ONE_SIDE, "take data=paired or data=unpaired, or method=stylegan2"),
        (Pix2Pix, SETS, "data: Pix2Pix learns from aligned pairs"),
        (StyleGAN2, PAIRS, "data: StyleGAN2 makes images from noise and learns from one set of them"),
        (StyleGAN2, SETS, "take data=images or data=toyfaces_images"),
    ],
)
def test_other_data_are_refused_in_one_line(kind: type[Method], data: Any, says: str) -> None:
    with pytest.raises(UserError) as slip:
        set_up(kind, data)
    assert says in str(slip.value)
    assert len(str(slip.value).splitlines()) == 1
