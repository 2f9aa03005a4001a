"""Arguments that no network can have: one line each, when it is built."""

from __future__ import annotations

import math
from typing import Any

import pytest

from i2i_lightning.networks.stylegan1 import StyleGAN1Generator
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError

SMALL = {"channel_base": 128, "channel_max": 8}


def message(cls: type, size_px: int, arguments: dict[str, Any]) -> str:
    with pytest.raises(UserError) as slip:
        cls(size_px, **SMALL | arguments)
    assert "\n" not in str(slip.value)
    return str(slip.value)


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"channels": 0}, "channels=0: give at least 1"),
    ({"mapping_layers": 0}, "mapping_layers=0: give at least 1"),
    ({"label_dim": -1}, "label_dim=-1: give the length of the label, or 0"),
    ({"conv_clamp": 0}, "conv_clamp=0: give a positive number"),
    ({"conv_clamp": -256.0}, "conv_clamp=-256.0: give a positive number"),
    ({"channel_base": 16}, "channel_base=16, channel_max=8: 32 px needs at least 32 and 1"),
    ({"channel_max": 0}, "channel_base=128, channel_max=0: 32 px needs at least 32 and 1"),
]


@pytest.mark.parametrize("cls", [StyleGAN2Generator, StyleGAN2Discriminator])
@pytest.mark.parametrize(("arguments", "told"), BOTH)
def test_of_both_players(cls: type, arguments: dict[str, Any], told: str) -> None:
    assert message(cls, 32, arguments).startswith(told)


@pytest.mark.parametrize("cls", [StyleGAN2Generator, StyleGAN1Generator])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lr_multiplier": 0}, "lr_multiplier=0: give a positive number"),
        ({"lr_multiplier": math.nan}, "lr_multiplier=nan: give a positive number"),
        ({"z_dim": 0}, "z_dim=0: give at least 1"),
        ({"mapping_layers": 0}, "mapping_layers=0: give at least 1"),
        ({"label_dim": -2}, "label_dim=-2: give the length of the label, or 0"),
    ],
)
def test_of_generators(cls: type, arguments: dict[str, Any], told: str) -> None:
    assert message(cls, 32, arguments).startswith(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mbstd_group_size": 0}, "mbstd_group_size=0: give at least 1"),
        ({"mbstd_group_size": -4}, "mbstd_group_size=-4: give at least 1"),
        ({"mbstd_channels": 3}, "mbstd_channels=3: give a divisor of the 8 channels at 4 px, or 0"),
        ({"mbstd_channels": -1}, "mbstd_channels=-1: give a divisor of the 8 channels at 4 px, or 0"),
        ({"architecture": "skip"}, "architecture=skip: choose resnet or orig"),
    ],
)
def test_of_the_discriminator(arguments: dict[str, Any], told: str) -> None:
    assert message(StyleGAN2Discriminator, 32, arguments) == told


def test_the_outermost_that_are_possible() -> None:
    StyleGAN2Discriminator(8, **SMALL, mbstd_channels=0, conv_clamp=None)
    StyleGAN2Discriminator(8, **SMALL, mbstd_channels=8, mbstd_group_size=1 << 16, mapping_layers=1)
    StyleGAN2Generator(8, channel_base=8, channel_max=1, z_dim=1, w_dim=1, mapping_layers=1)
