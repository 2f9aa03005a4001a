"""PIL images, numpy arrays and tensors to pixels, checked against what a generator takes; and PIL back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from i2i_lightning.data.display import label_palette
from i2i_lightning.translation.formats import describe
from i2i_lightning.types import ImageFormat, UserError

Array = npt.NDArray[Any]

_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def from_pil(image: Image.Image, format: ImageFormat) -> Tensor:
    """Return the pixels of a PIL image, turned upright.

    Raises:
        UserError: If it is not of the format.
    """
    image = ImageOps.exif_transpose(image)
    if format.kind == "labels":
        if image.mode not in ("1", "L", "P", "I", *_SIXTEEN_BIT_MODES):
            raise UserError(
                f"a PIL image of mode {image.mode}: this generator takes {describe(format)}, as index images"
            )
        return _ids(np.asarray(image), format)
    if image.mode == "1":
        image = image.convert("L")
    eight_bit = image.mode in ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
    if _converts(format) and eight_bit and image.mode != _MODES.get(_channels(format)):
        image = image.convert(_MODES[_channels(format)])
    if image.mode not in (*_MODES.values(), "F", *_SIXTEEN_BIT_MODES):
        raise UserError(f"a PIL image of mode {image.mode}: convert it to {describe(format)} first")
    array = np.asarray(image)
    return _image(array.astype(np.uint16) if image.mode in _SIXTEEN_BIT_MODES else array, format, "(H, W, C)")


def from_array(array: Array, format: ImageFormat) -> Tensor:
    """Return the pixels of an array ``(H, W)`` or ``(H, W, C)``; they share its memory where they can.

    Raises:
        UserError: If it is not of the format.
    """
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"an array of shape {array.shape}: give (H, W) or (H, W, C)")
    return _ids(array, format) if format.kind == "labels" else _image(array, format, "(H, W, C)")


def from_tensor(images: Tensor, format: ImageFormat) -> list[Tensor]:
    """Return the pixels of each image of a tensor ``(C, H, W)`` or ``(N, C, H, W)``.

    Raises:
        UserError: If it is not of the format.
    """
    if images.dim() not in (3, 4) or 0 in images.shape:
        raise UserError(f"a tensor of shape {tuple(images.shape)}: give (C, H, W) or (N, C, H, W)")
    batch = images.detach() if images.dim() == 4 else images.detach()[None]
    if format.kind == "labels":
        return [_ids(one.permute(1, 2, 0).cpu().numpy(), format).to(images.device) for one in batch]
    if batch.is_floating_point():
        batch = batch.float()
    return [_checked(one, format, "(C, H, W)") for one in batch]


def to_pil(pixels: Tensor, format: ImageFormat) -> Image.Image:
    """Return pixels ``(C, H, W)`` or ids ``(H, W)`` as a PIL image; ids with a palette.

    Raises:
        UserError: If PIL has no mode for them.
    """
    array = pixels.cpu().numpy()
    if array.ndim == 2:
        image = Image.fromarray(array)
        if array.dtype == np.uint8:
            image.putpalette(palette(format).tobytes())  # an image of mode L becomes one of mode P
        return image
    channels = array.shape[0]
    if channels == 1 or (array.dtype == np.uint8 and channels in _MODES):
        return Image.fromarray(array[0] if channels == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    raise UserError(f"PIL has no image of {channels} channels of {array.dtype}: give a numpy array instead")


def palette(format: ImageFormat) -> npt.NDArray[np.uint8]:
    """Return the colour of each class, uint8 ``(classes, 3)``: the training files' own if they had one."""
    if format.palette is not None:
        return np.array(format.palette, np.uint8)[:, :3]
    return np.asarray(label_palette(format.channels).numpy(), np.uint8)


def _channels(format: ImageFormat) -> int:
    """Return the channels that 8-bit pictures of this format are converted to."""
    return 3 if format.kind == "lightness" else format.channels


def _converts(format: ImageFormat) -> bool:
    return format.kind == "lightness" or (format.convert == "match" and format.channels in (1, 3))


def _image(array: Array, format: ImageFormat, axes: str) -> Tensor:
    """Return ``(H, W)`` or ``(H, W, C)`` as checked pixels ``(C, H, W)``."""
    array = array[:, :, None] if array.ndim == 2 else array
    if array.dtype == np.uint8 and _converts(format) and array.shape[2] in _MODES:
        wanted = _channels(format)
        if array.shape[2] != wanted and not (format.kind == "lightness" and array.shape[2] == 1):
            flat = array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array)
            converted = np.asarray(Image.fromarray(flat).convert(_MODES[wanted]))
            array = converted[:, :, None] if converted.ndim == 2 else converted
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype not in (np.uint8, np.uint16):
        raise UserError(f"an image of {array.dtype}: give uint8, uint16, or floats in [-1, 1]")
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch can hold neither
    return _checked(torch.from_numpy(array).permute(2, 0, 1), format, axes)


def _checked(pixels: Tensor, format: ImageFormat, axes: str) -> Tensor:
    channels = pixels.shape[0]
    wanted = (1, 3) if format.kind == "lightness" else (format.channels,)
    if channels not in wanted:
        order = f": the axes are {axes}" if set(pixels.shape[1:]) & set(wanted) else ""
        raise UserError(
            f"an image of {channels} channel{'s' if channels > 1 else ''}: "
            f"this generator takes {describe(format)}{order}"
        )
    if pixels.is_floating_point():
        lowest, highest = float(pixels.min()), float(pixels.max())
        # Written so that a NaN fails too. A hair beyond the ends is rounding.
        if not (lowest >= -1.001 and highest <= 1.001):
            raise UserError(f"an image of floats from {lowest:g} to {highest:g}: give floats in [-1, 1]")
    elif pixels.dtype not in (torch.uint8, torch.uint16):
        raise UserError(f"an image of {pixels.dtype}: give uint8, uint16, or floats in [-1, 1]")
    return pixels


def _ids(array: Array, format: ImageFormat) -> Tensor:
    """Return checked ids ``(H, W)`` from ids ``(H, W)`` or ``(H, W, 1)``, or from one-hot ``(H, W, K)``."""
    classes = format.channels
    if array.ndim == 3 and array.shape[2] == classes and classes > 1:
        if not ((array == 0) | (array == 1)).all() or not (array.sum(axis=2) == 1).all():
            raise UserError(f"a label map of {classes} channels that is not one-hot: give ids (H, W)")
        array = array.argmax(axis=2)
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "uib":
        raise UserError(
            f"an image of {array.dtype} {array.shape}: "
            f"this generator takes {describe(format)}, as integer ids"
        )
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= classes:
        raise UserError(
            f"label id {lowest if lowest < 0 else highest}: this generator has classes 0 to {classes - 1}"
        )
    return torch.from_numpy(array.astype(np.uint8 if classes <= 256 else np.int32))
