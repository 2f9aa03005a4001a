"""Geometry before the cache, crop and flip after it, and the step from pixels to network space.

A picture is resized *before* its random crop, so the resized picture can be cached without loss: what an
epoch sees is a window of the cache, the same pixels that decoding, resizing and cropping anew would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.data.checks import FileProblem, check_choice
from i2i_lightning.types import Size, UserError, height_width

Array = npt.NDArray[Any]
HeightWidth = tuple[int, int]

PREPROCESS = ("resize_and_crop", "crop", "scale_width", "scale_shortest", "none")


@dataclass(frozen=True)
class Geometry:
    """How pictures come to their size: resize to :meth:`cached_size`, then cut a window of ``crop_px``.

    ===================  =================================  =================================
    mode                 training                           validation
    ===================  =================================  =================================
    ``resize_and_crop``  to ``load_px``, aspect lost        to ``crop_px``, aspect lost
    ``crop``             not resized                        not resized
    ``scale_width``      width to ``load_px``, at least     width to ``crop_px``, at least
                         as high as the window              as high as the window
    ``scale_shortest``   just covers ``load_px``            just covers ``crop_px``
    ``none``             sides rounded to ``multiple_px``,  the same
                         never cut
    ===================  =================================  =================================

    The window lies at random in training and in the middle in validation. With ``crop_px=None`` nothing is
    cut and ``load_px`` stands in for it.

    Args:
        mode: One of :data:`PREPROCESS`.
        load_px: A side or [height, width] to resize to in training; None takes ``crop_px``: no jitter.
        crop_px: A side or [height, width] of the window; None keeps the whole picture.
        multiple_px: What ``none`` rounds the sides to.

    Raises:
        UserError: If a size is no size, or ``load_px`` is smaller than ``crop_px``.
    """

    mode: str
    load_px: Size | None
    crop_px: Size | None
    multiple_px: int = 4

    def __post_init__(self) -> None:
        check_choice("data.preprocess", self.mode, PREPROCESS)
        if self.multiple_px < 1:
            raise UserError(f"data.multiple_px={self.multiple_px}: must be at least 1")
        if self.mode == "none":
            return
        crop, load = self.crop, self.load
        if crop is None and self.load_px is None and self.mode != "crop":
            raise UserError(
                f"data.load_px=null with data.preprocess={self.mode}: give data.load_px or data.crop_px"
            )
        if crop is None or load is None or self.mode == "crop":
            return
        too_low = load[0] < crop[0] and self.mode != "scale_width"
        if too_low or load[1] < crop[1]:
            raise UserError(
                f"data.crop_px={_sides(crop)} is larger than data.load_px={_sides(load)}: "
                f"raise load_px to at least {_sides(crop)}, or lower crop_px"
            )

    @property
    def crop(self) -> HeightWidth | None:
        """(height, width) of the window, or None where the whole picture is used."""
        if self.crop_px is None or self.mode == "none":
            return None
        return height_width(self.crop_px, "data.crop_px")

    @property
    def load(self) -> HeightWidth | None:
        """(height, width) to resize to in training."""
        if self.load_px is None:
            return self.crop
        return height_width(self.load_px, "data.load_px")

    def cached_size(self, height: int, width: int, training: bool) -> HeightWidth:
        """Return (height, width) that a picture of ``height`` x ``width`` is resized to before it is cut.

        Raises:
            FileProblem: If the result is smaller than the window.
        """
        target = self.load if training or self.crop is None else self.crop
        if self.mode == "none":
            size = self._rounded(height), self._rounded(width)
        elif self.mode == "crop" or target is None:
            size = height, width
        elif self.mode == "resize_and_crop":
            size = target
        elif self.mode == "scale_width":
            least_height = self.crop[0] if self.crop is not None else 1
            size = max(int(target[1] * height / width), least_height), target[1]
        else:
            scale = max(target[0] / height, target[1] / width)
            size = max(target[0], round(scale * height)), max(target[1], round(scale * width))
        if self.crop is not None and (size[0] < self.crop[0] or size[1] < self.crop[1]):
            raise FileProblem(
                f"smaller than data.crop_px={_sides(self.crop)}",
                "lower crop_px, or data.preprocess=resize_and_crop",
                f"{height}x{width}",
            )
        return size

    def _rounded(self, side: int) -> int:
        return max(round(side / self.multiple_px), 1) * self.multiple_px


def _sides(size: HeightWidth) -> str:
    """Return a size as its user would write it."""
    return str(size[0]) if size[0] == size[1] else f"[{size[0]},{size[1]}]"


def resize(array: Array, size: HeightWidth, labels: bool = False) -> Array:
    """Resize a picture as PIL does: antialiased bicubic, or nearest for label maps.

    Eight-bit channels go through PIL's integer filter one by one, which gives the pixels of ``Image.resize``
    on the whole picture. Sixteen-bit and float channels go through its float filter; the overshoot of the
    bicubic kernel is cut off at the type's ends, as PIL does for eight bits.

    Args:
        array: ``(H, W, C)`` uint8, uint16 or float32 in [-1, 1]; ``(H, W)`` ids for ``labels``.
        size: The new (height, width).
        labels: Take the nearest pixel, so that no id is invented.

    Returns:
        The same type and axes at the new size.
    """
    height, width = size
    if array.shape[:2] == size:
        return array
    if labels:
        mode = array if array.dtype == np.uint8 else array.astype(np.int32)
        ids = Image.fromarray(mode).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(ids).astype(array.dtype)
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    exact = array if array.dtype == np.uint8 else array.astype(np.float32)
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(exact[:, :, channel])).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for channel in range(array.shape[2])
    ]
    resized: Array = np.stack(channels, axis=2)
    if array.dtype == np.uint16:
        return np.rint(resized).clip(0, 65535).astype(np.uint16)
    return resized.clip(-1, 1) if array.dtype == np.float32 else resized


def window(
    size: HeightWidth, crop: HeightWidth | None, uniforms: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the part of a picture of ``size`` that an item shows.

    Args:
        size: (height, width) of the cached picture, at least ``crop``.
        crop: (height, width) of the window; None shows all.
        uniforms: Two numbers in [0, 1) that place it; None puts it in the middle.
    """
    if crop is None:
        return 0, 0, size[0], size[1]
    free_rows, free_columns = size[0] - crop[0], size[1] - crop[1]
    if uniforms is None:
        return free_rows // 2, free_columns // 2, crop[0], crop[1]
    return int(uniforms[0] * (free_rows + 1)), int(uniforms[1] * (free_columns + 1)), crop[0], crop[1]


def scale_to_network(pixels: Tensor) -> Tensor:
    """Return pixels as float32 in [-1, 1]: ``(v - v_max / 2) / (v_max / 2)``.

    Taking the middle away first is exact, so that the result is the nearest float, and black and white are
    exactly -1 and 1. The arithmetic is in place: letting PyTorch promote integers on the way takes twice the
    time on a CPU.

    Args:
        pixels: uint8, uint16, or floats that are in [-1, 1] already, of any shape and on any device.
    """
    if pixels.is_floating_point():
        return pixels.float()
    if pixels.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(f"pixels of {pixels.dtype}: uint8, uint16 or float is needed")
    middle = 127.5 if pixels.dtype == torch.uint8 else 32767.5
    return pixels.float().sub_(middle).div_(middle)


def network_image(pixels: Array) -> Tensor:
    """Return one picture's pixels ``(H, W, C)`` as float32 ``(1, C, H, W)`` in [-1, 1]."""
    values = scale_to_network(torch.from_numpy(np.array(pixels)))  # a copy: what PIL gives is read-only
    return values.permute(2, 0, 1)[None].contiguous()


def one_hot(ids: Tensor, classes: int) -> Tensor:
    """Return ids ``(N, H, W)`` as float32 ``(N, classes, H, W)`` in {0, 1}.

    Args:
        ids: Unsigned integers in 0..classes-1, checked when the data set was read.
        classes: The number of channels to make.
    """
    channels = torch.arange(classes, dtype=torch.int32, device=ids.device).view(1, classes, 1, 1)
    return (ids.to(torch.int32).unsqueeze(1) == channels).float()
