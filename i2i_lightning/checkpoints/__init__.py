"""Reading and writing trained networks."""

from i2i_lightning.checkpoints.load import (
    LoadedGenerator,
    load_discriminator,
    load_generator,
    open_generator,
)

__all__ = ["LoadedGenerator", "load_discriminator", "load_generator", "open_generator"]
