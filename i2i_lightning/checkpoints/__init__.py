"""Reading and writing trained networks."""

from i2i_lightning.checkpoints.identity import load_identity
from i2i_lightning.checkpoints.load import (
    LoadedGenerator,
    load_discriminator,
    load_generator,
    open_generator,
)
from i2i_lightning.checkpoints.style.load import load_style_discriminator, load_style_generator
from i2i_lightning.checkpoints.style.native import save_style_discriminator, save_style_generator

__all__ = [
    "LoadedGenerator",
    "load_discriminator",
    "load_generator",
    "load_identity",
    "load_style_discriminator",
    "load_style_generator",
    "open_generator",
    "save_style_discriminator",
    "save_style_generator",
]
