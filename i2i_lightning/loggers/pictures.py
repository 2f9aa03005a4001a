"""What loggers agree on about pictures: their form, and where a run keeps those of an epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""One image for people: uint8 (H, W, 3)."""

PREVIEW = "preview"
"""The key under which loggers show the grid of an epoch."""


def preview_file(run_folder: str | os.PathLike[str], epoch: int) -> Path:
    """Return where the grid of previews after ``epoch`` (from 1) lies in a run folder."""
    return Path(run_folder) / "images" / f"epoch_{epoch:04d}.png"


def preview_caption(epoch: int) -> str:
    """Return the words under the grid of previews after ``epoch`` (from 1)."""
    return f"epoch {epoch}"


def checked(pixels: Any, key: str) -> Pixels:
    """Return ``pixels`` if they are a picture that every logger shows as it is.

    W&B and TensorBoard take floats too, each with a range of its own in mind; W&B turns [0, 1] black.

    Raises:
        TypeError: If they are not uint8 (H, W, 3).
    """
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[2] != 3
    ):
        given = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
        raise TypeError(f"{key}: loggers take pictures as uint8 (H, W, 3), not {given}")
    return pixels
