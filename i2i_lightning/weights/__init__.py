"""Pre-trained weights of other projects: where they lie, how they are had, and what is in them."""

from __future__ import annotations

from i2i_lightning.weights.store import find, load

__all__ = ["find", "load"]
