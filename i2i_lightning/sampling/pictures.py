"""Images of a generator as pictures for people, and as files that say how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.data.display import images_to_rgb


def to_picture(image: Tensor) -> Image.Image:
    """Return an image ``(C, H, W)`` in [-1, 1] as a picture: grey for one channel, with alpha for four.

    Of other numbers of channels it shows what :func:`images_to_rgb` does.
    """
    rgb = images_to_rgb(image[None])[0].permute(1, 2, 0).numpy()
    if len(image) == 1:
        return Image.fromarray(rgb[:, :, 0].copy())
    picture = Image.fromarray(rgb)
    if len(image) == 4:
        picture.putalpha(Image.fromarray(images_to_rgb(image[None, 3:])[0, 0].numpy()))
    return picture


def write_png(path: Path, picture: Image.Image, notes: Mapping[str, str]) -> None:
    """Write ``picture`` with ``notes`` as text chunks; what cannot be written whole is not written.

    Raises:
        UserError: If it cannot be written.
    """
    chunks = PngInfo()
    for key, text in notes.items():
        chunks.add_text(key, text)
    write_beside(path, lambda beside: picture.save(beside, format="PNG", compress_level=4, pnginfo=chunks))
