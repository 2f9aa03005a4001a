"""Between pixels and network space, for every kind of image a generator may take or make.

Pixels are uint8, uint16, or floats in [-1, 1], ``(C, H, W)``; label maps are ids ``(H, W)``. Values are
rounded to the nearest level on the way out, not truncated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from i2i_lightning.data.color import CHROMA_SCALE, LIGHTNESS_SCALE, lab_to_rgb, rgb_to_lab
from i2i_lightning.data.transforms import one_hot, scale_to_network
from i2i_lightning.types import ImageFormat, UserError

LEVELS = {torch.uint8: 255, torch.uint16: 65535}
"""The value of white in each integer type."""


def check_formats(input: ImageFormat, output: ImageFormat) -> None:
    """Raise a UserError if a pair of formats cannot go from image files to image files."""
    if input.kind == "chroma":
        raise UserError("the input of this direction is chroma, which no image file holds alone")
    if output.kind == "chroma" and input.kind != "lightness":
        raise UserError(f"chroma from an input of kind {input.kind}: only with lightness it makes a picture")


def picture_channels(format: ImageFormat) -> int:
    """Return the channels of a picture of this format: 1 for ids and lightness, 3 for chroma."""
    return {"image": format.channels, "chroma": 3}.get(format.kind, 1)


def to_network(pixels: Tensor, format: ImageFormat) -> Tensor:
    """Return pixels ``(N, C, H, W)`` or ids ``(N, H, W)`` as the network sees them, float ``(N, C', H, W)``.

    Args:
        pixels: On any device. For lightness: RGB, or grey.
        format: What they are.
    """
    if format.kind == "labels":
        return one_hot(pixels, format.channels)
    images = scale_to_network(pixels)
    if format.kind != "lightness":
        return images
    rgb = (images.expand(-1, 3, -1, -1) + 1) / 2
    return rgb_to_lab(rgb)[:, :1] / LIGHTNESS_SCALE - 1


def to_pixels(outputs: Tensor, format: ImageFormat, dtype: torch.dtype, real_a: Tensor | None) -> Tensor:
    """Return a network's outputs as pixels ``(N, C, H, W)``, or as ids ``(N, H, W)`` for labels.

    Args:
        outputs: Float ``(N, C', H, W)``; values outside [-1, 1] are clamped.
        format: What they are.
        dtype: uint8, uint16 or float32. Ids take the smallest unsigned type that holds them.
        real_a: The network's inputs, for outputs that only mean something together with them.
    """
    outputs = outputs.float()
    if format.kind == "labels":
        ids = outputs.argmax(dim=1)
        return ids.to(torch.uint8) if format.channels <= 256 else ids.to(torch.int32).to(torch.uint16)
    outputs = outputs.clamp(-1, 1)
    if format.kind == "lightness":
        no_chroma = torch.zeros_like(outputs).expand(-1, 2, -1, -1)
        outputs = lab_to_rgb(torch.cat([(outputs + 1) * LIGHTNESS_SCALE, no_chroma], 1))[:, :1] * 2 - 1
    elif format.kind == "chroma":
        assert real_a is not None
        lightness = (real_a.float().clamp(-1, 1) + 1) * LIGHTNESS_SCALE
        outputs = lab_to_rgb(torch.cat([lightness, outputs * CHROMA_SCALE], 1)) * 2 - 1
    if dtype.is_floating_point:
        return outputs.to(dtype)
    half = LEVELS[dtype] / 2
    levels = outputs.add_(1).mul_(half).round_()  # in place: a strip of a large image is large itself
    return levels.to(torch.uint8) if dtype == torch.uint8 else levels.to(torch.int32).to(dtype)


def describe(format: ImageFormat) -> str:
    """Return what an image of this format is, for messages: ``RGB images``, ``label maps of 11 classes``."""
    if format.kind == "labels":
        return f"label maps of {format.channels} classes"
    if format.kind == "lightness":
        return "grey or RGB images"
    names = {1: "grey", 3: "RGB", 4: "RGBA"}
    return f"{names.get(format.channels, f'{format.channels}-channel')} images"
