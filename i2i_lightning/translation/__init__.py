"""Images through a trained generator: any size, channels and depth, from memory or from files."""

from i2i_lightning.translation.translator import Translator

__all__ = ["Translator"]
