"""Sheets of pictures: grids, and matrices with their sources on the margins."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from i2i_lightning.types import UserError

SMALLEST_PX, LARGEST_PX = 128, 256
"""Sides of a picture in a sheet, where nothing else is asked for."""
MOST_PIXELS = 400_000_000
"""A sheet holds this in 1.2 GB."""
PAPER, INK = (250, 250, 248), (60, 60, 64)


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a sheet lie.

    Args:
        columns: Pictures side by side.
        rows: Pictures one above the other.
        tile_px: Side of each.
        margin: Whether the first row and the first column are set apart.
    """

    columns: int
    rows: int
    tile_px: int
    margin: bool = False

    @property
    def gutter_px(self) -> int:
        """Space between pictures."""
        return max(2, self.tile_px // 64)

    @property
    def font_px(self) -> int:
        """Size of the words."""
        return max(11, min(self.tile_px // 12, 20))

    @property
    def caption_px(self) -> int:
        """Height of the line under a picture."""
        return math.ceil(self.font_px * 1.5)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet in pixels."""
        x, y = self.corner(self.columns, self.rows)
        return x + 2 * self.gutter_px, y + 2 * self.gutter_px

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Return the left upper corner of a picture."""
        apart = 4 * self.gutter_px if self.margin else 0
        x = 3 * self.gutter_px + column * (self.tile_px + self.gutter_px) + (apart if column else 0)
        y = 3 * self.gutter_px + row * (self.tile_px + self.caption_px + self.gutter_px)
        return x, y + (apart if row else 0)

    def check(self, key: str, otherwise: str = "") -> None:
        """Raise ``UserError`` if the sheet would be too large to draw; ``otherwise`` is one more way out."""
        width, height = self.size
        if width * height > MOST_PIXELS:
            raise UserError(
                f"{key}: {self.columns} x {self.rows} pictures of {self.tile_px} px on one sheet are "
                f"{width * height / 1e6:,.0f} megapixels; give fewer seeds, a lower tile_px{otherwise}"
            )


def grid_layout(count: int, tile_px: int) -> Layout:
    """Return a layout for ``count`` pictures, about as wide as it is high."""
    columns = math.ceil(math.sqrt(count))
    return Layout(columns, math.ceil(count / columns), tile_px)


def tile_side(size_px: int, tile_px: int | None) -> int:
    """Return the side of a picture in a sheet: ``tile_px``, else about that of the picture.

    Small pictures are enlarged by a whole factor to 128 px or more, large ones made smaller to 256 px.
    """
    if tile_px is not None:
        return tile_px
    return min(size_px * max(1, math.ceil(SMALLEST_PX / size_px)), LARGEST_PX)


def tile(picture: Image.Image, side: int) -> Image.Image:
    """Return ``picture`` at this side; pixels stay sharp squares where it grows by a whole factor."""
    if picture.width == side:
        return picture
    whole = side % picture.width == 0
    return picture.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


class Sheet:
    """A sheet that is filled picture by picture.

    Args:
        layout: Where they lie.

    Attributes:
        image: The sheet, RGB.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.image = Image.new("RGB", layout.size, PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(size=layout.font_px)

    def put(self, column: int, row: int, picture: Image.Image, words: str = "") -> None:
        """Draw ``picture`` in its place, with ``words`` under it."""
        x, y = self.layout.corner(column, row)
        side = self.layout.tile_px
        self.image.paste(tile(picture.convert("RGB"), side), (x, y))
        middle = (x + side / 2, y + side + self.layout.caption_px / 2)
        self._draw.text(middle, words, fill=INK, font=self._font, anchor="mm")
