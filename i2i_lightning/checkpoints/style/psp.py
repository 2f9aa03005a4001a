"""Checkpoints of the encoders pSp, e4e and ReStyle: the generator that they were trained against.

It stands under ``decoder.`` in rosinality's layout, beside the encoder, which is left where it is.
"""

from __future__ import annotations

from typing import Any

from i2i_lightning.checkpoints.style import rosinality
from i2i_lightning.checkpoints.style.contents import StyleNetwork
from i2i_lightning.checkpoints.style.values import Missing

WORDS = "a checkpoint of an encoder (pSp, e4e, ReStyle)"
PREFIX = "decoder."


def recognise(held: Any) -> bool:
    """Return whether this is such a checkpoint."""
    state = held.get("state_dict") if type(held) is dict else None
    return type(state) is dict and PREFIX + rosinality.MARK in state


def generator(held: Any, averaged: bool = True) -> StyleNetwork:
    """Return the generator; there is one alone.

    Raises:
        Refused: If it is not one that this project has.
    """
    state = {
        name.removeprefix(PREFIX): value
        for name, value in held["state_dict"].items()
        if isinstance(name, str) and name.startswith(PREFIX)
    }
    return rosinality.read_generator(state, held.get("latent_avg"))


def discriminator(held: Any) -> StyleNetwork:
    """Raise ``Missing``: these files judge latents, if anything."""
    raise Missing("it holds no discriminator of images")
