"""Large images in overlapping tiles: where the tiles lie, how they are blended, and whether one sees it.

Tiles begin at multiples of what the network's strides need, so that inside of a tile each pixel meets the
same arithmetic as in the whole image. What differs is what lies beyond a tile's edge. Therefore tiles
overlap: the outer quarter of an overlap is thrown away, and over the half in its middle one tile fades into
the next. The weights at a pixel add up to 1.

One row of tiles at a time is held; finished rows of pixels are handed on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Corner = tuple[int, int]
"""(top, left) in pixels."""

LEAST_OVERLAP_PX = 128
"""Of it the outer 32 px are thrown away. Near its edge a tile is not what it is in the whole image: with a
residual generator of 9 blocks by a quarter of its range at the edge, 1 % at 32 px, nothing from 64 px on."""


@dataclass(frozen=True)
class Axis:
    """How one axis of an image is covered.

    Args:
        length_px: The length to cover.
        tile_px: The length of a tile.
        starts: Where the tiles begin.
        fades: Begin and end of each stretch over which a tile fades into the next; one fewer than tiles.
    """

    length_px: int
    tile_px: int
    starts: tuple[int, ...]
    fades: tuple[tuple[int, int], ...]

    def weight(self, number: int) -> Tensor:
        """Return the weight of each pixel of tile ``number``, float32 ``(tile_px,)`` in [0, 1]."""
        place = torch.arange(self.tile_px) + self.starts[number] + 0.5
        weight = torch.ones(self.tile_px)
        if number > 0:
            weight *= _rise(place, *self.fades[number - 1])
        if number < len(self.fades):
            weight *= 1 - _rise(place, *self.fades[number])
        return weight

    @property
    def borders(self) -> tuple[int, ...]:
        """The first pixels behind each line at which another set of tiles begins to count, sorted."""
        ends = [end for fade in self.fades for end in (*fade, sum(fade) // 2)]
        return tuple(sorted({end for end in ends if 0 < end < self.length_px}))


def _rise(place: Tensor, begin: int, end: int) -> Tensor:
    """Return 0 before ``begin``, 1 after ``end``, and between them a curve that is level at both."""
    t = ((place - begin) / (end - begin)).clamp(0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Tiling:
    """A grid of equal tiles over an image.

    Args:
        rows: How the height is covered.
        columns: How the width is covered.
    """

    rows: Axis
    columns: Axis

    @property
    def num_tiles(self) -> int:
        """The number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)


def plan(height: int, width: int, tile_px: int, multiple_px: int) -> Tiling:
    """Lay tiles over an image whose sides are multiples of ``multiple_px``.

    Tiles are ``tile_px`` on a side, rounded to the multiple and at least two of it, and no larger than the
    image. They overlap by an eighth of it, but by :data:`LEAST_OVERLAP_PX` or half of a tile at least.
    """
    return Tiling(_axis(height, tile_px, multiple_px), _axis(width, tile_px, multiple_px))


def _axis(length_px: int, tile_px: int, multiple_px: int) -> Axis:
    tile = max(tile_px // multiple_px, 2) * multiple_px
    if length_px <= tile:
        return Axis(length_px, length_px, (0,), ())
    overlap = max(max(tile // 8, min(LEAST_OVERLAP_PX, tile // 2)) // multiple_px, 1) * multiple_px
    last, step = length_px - tile, tile - overlap
    starts = (*range(0, last, step), last)
    fades = []
    for start, following in itertools.pairwise(starts):
        middle, reach = (following + start + tile) // 2, max(overlap // 4, 1)
        fades.append((middle - reach, middle + reach))
    return Axis(length_px, tile, starts, tuple(fades))


def translate_tiles(
    tiling: Tiling,
    read: Callable[[Corner, tuple[int, int]], Tensor],
    run: Callable[[Tensor, Sequence[Corner]], Tensor],
    write: Callable[[int, Tensor], None],
    batch_size: int = 1,
) -> None:
    """Translate an image tile by tile.

    Args:
        tiling: Where the tiles lie.
        read: Returns the part of the input at a corner of a size (height, width), float ``(C, h, w)``.
        run: Translates tiles ``(n, C, h, w)`` that lie at the given corners.
        write: Receives the first row's number and finished rows ``(C', h, width)``, from top to bottom.
        batch_size: Tiles translated together.
    """
    rows, columns = tiling.rows, tiling.columns
    size = rows.tile_px, columns.tile_px
    strip: Tensor | None = None
    written = 0
    for number, top in enumerate(rows.starts):
        begun = strip
        strip = None
        for where, tiles in _in_batches(top, columns.starts, size, read, run, batch_size):
            if strip is None:
                strip = tiles.new_zeros((tiles.shape[1], size[0], columns.length_px))
                if begun is not None:  # what the row above has added to these rows already
                    shared = rows.starts[number - 1] + size[0] - top
                    strip[:, :shared] = begun[:, size[0] - shared :]
                    begun = None
            down = rows.weight(number).to(tiles.device)[:, None]
            for index, tile in zip(where, tiles, strict=True):
                left, across = columns.starts[index], columns.weight(index).to(tiles.device)
                strip[:, :, left : left + size[1]].addcmul_(tile, down * across)
        assert strip is not None
        end = rows.fades[number][0] if number < len(rows.fades) else rows.length_px
        write(written, strip[:, written - top : end - top])
        written = end


def _in_batches(
    top: int,
    lefts: Sequence[int],
    size: tuple[int, int],
    read: Callable[[Corner, tuple[int, int]], Tensor],
    run: Callable[[Tensor, Sequence[Corner]], Tensor],
    batch_size: int,
) -> Iterator[tuple[range, Tensor]]:
    """Yield numbers and translations, float32 ``(n, C', h, w)``, of the tiles of one row."""
    for first in range(0, len(lefts), batch_size):
        where = range(first, min(first + batch_size, len(lefts)))
        corners = [(top, lefts[index]) for index in where]
        yield where, run(torch.stack([read(corner, size) for corner in corners]), corners).float()


@dataclass(frozen=True)
class Steps:
    """How far neighbouring pixels differ, across tile borders and elsewhere.

    A seam is a step that runs along a line. Texture makes steps too, but of either sign: it is averaged away
    when *signed* steps are averaged along a stretch of the line.

    Args:
        border: The largest mean step over a stretch across a border between tiles.
        inside: The largest over all other lines.
    """

    border: float
    inside: float


def seam_steps(image: Tensor, tiling: Tiling, stretch_px: int = 64) -> Steps:
    """Measure whether the borders between tiles can be told from the rest of an image.

    Args:
        image: Any numbers ``(C, H, W)``: a translated image, or its difference from one without tiles.
        tiling: Where the tiles were.
        stretch_px: The length over which steps are averaged.

    Returns:
        The worst stretch across a border, and the worst one elsewhere, in the image's units.
    """
    worst = {True: 0.0, False: 0.0}
    for axis, picture in ((tiling.columns, image), (tiling.rows, image.transpose(1, 2))):
        # picture is (C, lines along, positions across); step p lies between p and p + 1.
        is_border = torch.zeros(picture.shape[2] - 1, dtype=torch.bool)
        is_border[[place - 1 for place in axis.borders if place < picture.shape[2]]] = True
        for begin in range(0, max(picture.shape[1] - stretch_px, 0) + 1, stretch_px):
            stretch = picture[:, begin : begin + stretch_px].float()
            steps = stretch.diff(dim=2).mean(dim=1).abs().amax(dim=0).cpu()
            for kind in (True, False):
                if (is_border == kind).any():
                    worst[kind] = max(worst[kind], float(steps[is_border == kind].max()))
    return Steps(worst[True], worst[False])
