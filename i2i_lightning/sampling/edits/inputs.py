"""What an edit is given: latents by file, folder or seed; pictures and masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.checkpoints.latents import SUFFIX, Latent, load_latent
from i2i_lightning.data.alignment import crop, face_quad, landmarks_of
from i2i_lightning.data.checks import FileProblem
from i2i_lightning.data.decode import MASK, SideFormat, decode, read_header
from i2i_lightning.data.transforms import network_image, resize
from i2i_lightning.editing.ranges import as_written, parts_of, whole_numbers
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.sampling.sampler import MAX_SEED, Sampler
from i2i_lightning.types import UserError

DIFFERENT = 8 / 255 * 2
"""Difference of two pictures, in [-1, 1], from which a pixel counts as drawn over."""


def latent_files(given: Any) -> list[Path]:
    """Return the files that ``latents=`` names: files, or folders of them, such as a run of i2i-invert.

    Those of a folder come in the order of their paths below it, subfolders among them.

    Raises:
        UserError: If there are none.
    """
    if isinstance(given, str):
        places = [given] if Path(given).expanduser().exists() else parts_of(given)
    else:
        places = [str(each) for each in given]
    files: list[Path] = []
    for place in places:
        path = Path(place).expanduser()
        if not path.is_dir():
            files.append(path)
            continue
        run = path / "latents"  # with folders as its images had them
        found = sorted(run.rglob(f"*{SUFFIX}") if run.is_dir() else path.glob(f"*{SUFFIX}"))
        found = found or sorted(path.rglob(f"*{SUFFIX}"))
        if not found:
            raise UserError(f"latents={place}: no latent files (*{SUFFIX}) in this folder or its latents/")
        files += found
    if not files:
        raise UserError("latents=[]: give latent files, or a run folder of i2i-invert")
    return files


def seeds_of(value: Any, key: str = "seeds") -> list[int]:
    """Return the seeds that ``value`` lists."""
    return whole_numbers(value, key, MAX_SEED, "seeds")


def latents_of_seeds(seeds: Sequence[int], sampler: Sampler, label: int | None, source: str) -> list[Latent]:
    """Return the latents that seeds stand for, as ``i2i-sample`` draws them."""
    points = sampler.points(seeds, label)
    fingerprint = sampler.generator.fingerprint()
    return [
        Latent(
            w_plus.clone(),
            fingerprint,
            f"seed {seed}",
            label=sampler.one_hot(label),
            generator=source,
            settings={"seed": seed, "truncation": sampler.truncation, "label": label},
        )
        for seed, w_plus in zip(seeds, points.w_plus, strict=True)
    ]


def read_latents(files: Sequence[Path]) -> list[Latent]:
    """Return the latents in files; one without a name is called as its file is."""
    found = []
    for path in files:
        latent = load_latent(path)
        latent.name = latent.name or path.stem
        found.append(latent)
    return found


@dataclass
class Picture:
    """An image to edit.

    Args:
        image: (1, C, S, S) in [-1, 1], at the generator's size.
        size: (height, width) of the file.
        name: The file's name, without suffix.
        whole: (1, C, H, W), the picture that ``image`` was cut out of; None where it is all of it.
        quad: Corners of ``image`` in the whole; see :func:`~i2i_lightning.data.alignment.face_quad`.
    """

    image: Tensor
    size: tuple[int, int]
    name: str
    whole: Tensor | None = None
    quad: Tensor | None = None


@dataclass(frozen=True)
class Reader:
    """Reads pictures and masks for a generator.

    Args:
        generator: Whose size and channels they are brought to.
        convert: ``none``, or ``match`` to convert 8-bit files to the generator's grey or RGB.
        align: Whether pictures are cropped around their face, as FFHQ is.
        asked: The option that asks for that, as ``key=value``, for messages.
    """

    generator: StyleGenerator
    convert: str = "none"
    align: bool = False
    asked: str = "align=true"

    def picture(self, key: str, place: str | None, like: Picture | None = None) -> Picture:
        """Return the picture in a file.

        Args:
            key: The config key that names it, for messages.
            place: The file.
            like: Another version of the same picture, by whose face this one is cut out.

        Raises:
            UserError: If it is missing, damaged, not square, or of other channels than the generator's; if it
                has not the size of ``like``.
        """
        if place is None:
            raise UserError(f"{key}: missing; give an image file: {key}=photo.png")
        path = Path(place).expanduser()
        channels, side = self.generator.channels, self.generator.size_px
        try:
            format_ = SideFormat("", "image", channels, self.convert, "this generator draws")
            header = read_header(path, format_)
            pixels = decode(path, format_)
        except FileProblem as problem:
            raise UserError(f"{key}={place}: {_words(problem)}") from None
        size = (header.height, header.width)
        if like is not None and size != like.size:
            height, width = like.size
            raise UserError(
                f"{key}={place}: {header.width}x{header.height} px; {like.name}, which it is drawn on, has "
                f"{width}x{height} px"
            )
        if self.align:
            whole = network_image(pixels)
            quad = None if like is None else like.quad
            quad = face_quad(landmarks_of(path, pixels, self.asked)) if quad is None else quad
            return Picture(crop(whole, quad, side), size, path.stem, whole, quad)
        if header.height != header.width:
            raise UserError(
                f"{key}={place}: {header.width}x{header.height} px is not square; crop it, or for a face say "
                "align=true"
            )
        return Picture(network_image(resize(pixels, (side, side))), size, path.stem)

    def mask(self, key: str, place: str | None, of: Picture) -> Tensor:
        """Return the mask in a file as (1, 1, S, S) in [0, 1]: white is 1, black 0.

        Where a file's alpha varies, the mask is that alone, whatever the colours: opaque is 1, transparent 0,
        as editors export a layer that was painted on.

        Args:
            key: The config key that names it.
            place: The file.
            of: The picture that it belongs to.

        Raises:
            UserError: If it is missing, damaged, empty, or not of the picture's size.
        """
        if place is None:
            raise UserError(f"{key}: missing; give an image that is white where the edit is: {key}=mask.png")
        path = Path(place).expanduser()
        try:
            header = read_header(path, MASK)
            pixels = decode(path, MASK)
        except FileProblem as problem:
            raise UserError(f"{key}={place}: {_words(problem)}") from None
        if (header.height, header.width) != of.size:
            height, width = of.size
            raise UserError(
                f"{key}={place}: {header.width}x{header.height} px; a mask of {of.name} has {width}x{height} "
                "px, as it has"
            )
        side = self.generator.size_px
        if of.quad is not None:
            mask = crop((network_image(pixels) + 1) / 2, of.quad, side)
        else:
            mask = (network_image(resize(pixels, (side, side))) + 1) / 2
        if float(mask.max()) == 0:
            raise UserError(f"{key}={place}: is empty (all black); nothing would be edited")
        return mask

    def scribbles(self, photo: Picture, scribbled: Picture, around_px: float) -> Tensor:
        """Return where two pictures differ, and so many pixels around, (1, 1, S, S).

        A line thinner than the Gaussian that softens the mask would be gone without its surroundings.

        Raises:
            UserError: If they do not.
        """
        mask = ((photo.image - scribbled.image).abs().amax(1, keepdim=True) > DIFFERENT).float()
        reach = round(around_px)
        mask = F.max_pool2d(mask, 2 * reach + 1, 1, reach)
        if not bool(mask.any()):
            raise UserError("operation.scribbled: shows the same as operation.photo; nothing is drawn on it")
        return mask


def _words(problem: FileProblem) -> str:
    """Word a problem with one file, for a command whose config has its keys at the top."""
    words = problem.what + (f" ({problem.detail})" if problem.detail else "")
    return f"{words}{f': {problem.mend}' if problem.mend else ''}".replace("data.", "")


def numbers_of(value: Any, key: str) -> list[float]:
    """Return the numbers that ``value``, a list, a number, or text such as ``-2,0,2``, lists.

    Raises:
        UserError: If it is no such list.
    """
    try:
        found = [float(part) for part in parts_of(value)]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise UserError(f"{key}={as_written(value)}: give numbers, such as -2,0,2")
    return found


def box_of(value: Any, key: str) -> tuple[int, int, int, int]:
    """Return ``left, top, right, bottom``.

    Raises:
        UserError: If these are not four whole numbers.
    """
    if value is None:
        raise UserError(f"{key}: missing; give left,top,right,bottom in pixels: {key}=8,16,24,28")
    left, top, right, bottom = _whole_pixels(value, key, "left,top,right,bottom")
    return left, top, right, bottom


def corner_of(value: Any, key: str) -> tuple[int, int]:
    """Return ``left, top``.

    Raises:
        UserError: If these are not two whole numbers.
    """
    left, top = _whole_pixels(value, key, "left,top")
    return left, top


def _whole_pixels(value: Any, key: str, names: str) -> list[int]:
    """Return as many whole numbers as there are ``names``."""
    numbers = numbers_of(value, key)
    if len(numbers) != len(names.split(",")) or any(number != int(number) for number in numbers):
        raise UserError(f"{key}={as_written(value)}: give {names} in whole pixels")
    return [int(number) for number in numbers]
