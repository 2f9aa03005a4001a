"""Fixed samples, made and drawn each epoch: input | output | target or cycle, or a sheet of outputs."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from i2i_lightning.callbacks.readings import batch_size, batches_trained, log_step
from i2i_lightning.callbacks.writing import write_if_possible
from i2i_lightning.loggers.pictures import PREVIEW, Pixels, preview_caption, preview_file
from i2i_lightning.types import UserError

log = logging.getLogger(__name__)

SMALLEST_TILE_PX = 128
SMALLEST_SHEET_TILE_PX = 64
TILES = "tiles"
"""Under this name a grid says where its pictures are."""
PAPER, INK = (250, 250, 248), (60, 60, 64)


@dataclass
class Preview:
    """The samples of one moment.

    Of a method that translates both ways, samples take turns: one of a to b, one of b to a. A method without
    an input side makes them from the same noise each time.

    Attributes:
        names: Name of each sample.
        directions: For each sample, which way it was translated: ``ab`` or ``ba``; ``ab`` without inputs.
        samples: For each sample, its columns in order (``input``, ``output``, ``target`` or ``cycle``), as
            pictures for people; without inputs, ``output`` and whatever else the method makes of the noise.
        outputs: For each sample, the network's output, float (C, H, W) on the CPU.
        targets: For each sample, the target in the same form; where there are no pairs, a real image of the
            output's domain.
    """

    names: list[str] = field(default_factory=list)
    directions: list[str] = field(default_factory=list)
    samples: list[dict[str, Pixels]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    @property
    def has_inputs(self) -> bool:
        """Whether the samples were made from images; True where there are none."""
        return not self.samples or "input" in self.samples[0]

    def rows(self) -> list[dict[str, Pixels]]:
        """Return the samples as rows of a grid; both ways side by side, where there are two."""
        ways = len(set(self.directions))
        if ways < 2:
            return self.samples
        named = [
            {f"{column} {domain_of(column, direction)}": pixels for column, pixels in sample.items()}
            for direction, sample in zip(self.directions, self.samples, strict=True)
        ]
        return [
            {column: pixels for sample in named[start : start + ways] for column, pixels in sample.items()}
            for start in range(0, len(named), ways)
        ]

    def row_names(self) -> list[str]:
        """Return what the rows of a grid show: the names of their inputs."""
        ways = max(1, len(set(self.directions)))
        groups = [self.names[start : start + ways] for start in range(0, len(self.names), ways)]
        return [" / ".join(dict.fromkeys(names)) for names in groups]


def domain_of(column: str, direction: str) -> str:
    """Return which domain the images of a column are from: ``a`` or ``b``."""
    return direction[0] if column in ("input", "cycle") else direction[1]


_batches: WeakKeyDictionary[Trainer, list[Any]] = WeakKeyDictionary()
_previews: WeakKeyDictionary[Trainer, tuple[int, int, Preview]] = WeakKeyDictionary()


def preview(trainer: Trainer, num_samples: int) -> Preview:
    """Translate the first ``num_samples`` validation items as the method does at test time.

    Callbacks that ask at the same moment share one translation. Neither random states nor running statistics
    change. Call it on all processes: a method may synchronise its statistics between them.

    Returns:
        The preview, with fewer samples if there are fewer, and none where there is no validation set.
    """
    now = batches_trained(trainer)
    known = _previews.get(trainer)
    if known is not None and known[0] == now and known[1] >= num_samples:
        shared = known[2]
        shown = num_samples * max(1, len(set(shared.directions)))
        return Preview(*(values[:shown] for values in vars(shared).values()))
    made = _translate(trainer, num_samples)
    _previews[trainer] = (now, num_samples, made)
    return made


def _translate(trainer: Trainer, num_samples: int) -> Preview:
    module: Any = trainer.lightning_module
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    made = Preview()
    for batch in _fixed_batches(trainer, datamodule, num_samples):
        on_device = {
            key: value.to(module.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        plugin = trainer.precision_plugin
        with torch.no_grad(), plugin.forward_context():
            columns: dict[str, Any] = module.preview(plugin.convert_input(on_device))
            one_way = isinstance(next(iter(columns.values())), Tensor)
            ways: dict[str, dict[str, Tensor]] = {"ab": columns} if one_way else columns
            pixels = {
                direction: {
                    name: images.permute(0, 2, 3, 1).cpu().numpy()
                    for name, images in _displayed(datamodule, direction, found).items()
                }
                for direction, found in ways.items()
            }
        size = len(next(iter(ways.values()))["output"])
        for index, (direction, found) in itertools.product(range(size), ways.items()):
            names = batch.get("name") or batch.get(f"name_{direction[0]}") or [""] * size
            if "input" not in found:
                names = [f"sample {number + 1}" for number in range(size)]
            made.names.append(Path(str(names[index])).name)
            made.directions.append(direction)
            made.samples.append(
                {name: np.ascontiguousarray(images[index]) for name, images in pixels[direction].items()}
            )
            # Without pairs, the other way's input shows what outputs should be like, or any real image.
            other_way = ways.get(direction[::-1], {}).get("input")
            targets = found.get("target", batch.get("real") if other_way is None else other_way)
            if "output" in found and targets is not None:
                made.outputs.append(found["output"][index].float().cpu())
                made.targets.append(targets[index].float().cpu())
    return made


def _displayed(datamodule: Any, direction: str, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the columns of one direction as the data module shows them to people."""
    if "input" not in columns:
        return {name: datamodule.display_output(images, images) for name, images in columns.items()}
    of_a = next(images for name, images in columns.items() if domain_of(name, direction) == "a")
    return {
        name: datamodule.display_input(images)
        if domain_of(name, direction) == "a"
        else datamodule.display_output(images, of_a)
        for name, images in columns.items()
    }


def _fixed_batches(trainer: Trainer, datamodule: Any, num_samples: int) -> list[Any]:
    """Return the samples as one batch, fetched once per run; one sample alone where their sizes differ."""
    if not hasattr(datamodule, "preview_batch"):
        raise TypeError("previews need a data module with preview_batch, display_input and display_output")
    known = _batches.get(trainer)
    if known is not None and (not known or batch_size(known[0]) >= num_samples):
        return [{key: value[:num_samples] for key, value in batch.items()} for batch in known]
    try:
        batches = [datamodule.preview_batch(num_samples)]
    except UserError as error:
        log.warning("no previews: %s", error)
        batches = []
    except ValueError:
        log.warning("the validation images differ in size: previews show the first one alone")
        batches = [datamodule.preview_batch(1)]
    _batches[trainer] = batches
    return batches


def draw_grid(samples: Sequence[Mapping[str, Pixels]], smallest_px: int = SMALLEST_TILE_PX) -> Image.Image:
    """Draw samples as rows and their columns side by side, each column under its name.

    Args:
        samples: For each row, the pictures of its columns, uint8 (H, W, 3); every row has the same columns.
        smallest_px: Pictures smaller than this are enlarged by a whole factor, without smoothing.

    Returns:
        An RGB image, with the places of its pictures in ``info["tiles"]``; see :func:`tile_notes`.
    """
    names = list(samples[0])
    layout = _Layout.of(samples[0][names[0]], smallest_px)
    rows = [[_tile(row[name], layout.width_px) for name in names] for row in samples]
    heights = [max(tile.height for tile in row) for row in rows]
    grid, draw = layout.paper(layout.across(len(names)), sum(heights) + layout.gutter_px * (len(rows) - 1))
    for column, name in enumerate(names):
        layout.head(draw, name, layout.left(column), layout.width_px)
    y = layout.top
    boxes: list[list[list[int]]] = []
    for row, height in zip(rows, heights, strict=True):
        boxes.append([])
        for column, tile in enumerate(row):
            x = layout.left(column)
            grid.paste(tile, (x, y))
            boxes[-1].append([x, y, tile.width, tile.height])
        y += height + layout.gutter_px
    grid.info[TILES] = {"columns": names, "boxes": boxes, "enlarged": layout.factor}
    return grid


def draw_sheet(
    samples: Sequence[Mapping[str, Pixels]], smallest_px: int = SMALLEST_SHEET_TILE_PX
) -> Image.Image:
    """Draw samples that have no input: a nearly square block of pictures for each column, under its name.

    Args:
        samples: For each sample, the pictures of its columns, uint8 (H, W, 3), all equally large; every
            sample has the same columns.
        smallest_px: As for :func:`draw_grid`.

    Returns:
        An RGB image, with the places of its pictures as in :func:`draw_grid`: a row there is a sample.
    """
    names = list(samples[0])
    layout = _Layout.of(samples[0][names[0]], smallest_px)
    side = math.ceil(math.sqrt(len(samples)))
    tiles = [[_tile(sample[name], layout.width_px) for name in names] for sample in samples]
    height_px = max(tile.height for row in tiles for tile in row)
    lines = math.ceil(len(samples) / side)
    block_px = layout.across(side) + layout.margin_px
    grid, draw = layout.paper(
        len(names) * block_px - layout.margin_px, lines * height_px + (lines - 1) * layout.gutter_px
    )
    boxes: list[list[list[int]]] = [[] for _ in samples]
    for column, name in enumerate(names):
        layout.head(draw, name, layout.left(0) + column * block_px, layout.across(side))
        for index, row in enumerate(tiles):
            x = layout.left(index % side) + column * block_px
            y = layout.top + index // side * (height_px + layout.gutter_px)
            grid.paste(row[column], (x, y))
            boxes[index].append([x, y, row[column].width, row[column].height])
    grid.info[TILES] = {"columns": names, "boxes": boxes, "enlarged": layout.factor}
    return grid


@dataclass(frozen=True)
class _Layout:
    """The measures of a grid of pictures.

    Args:
        width_px: Width of a picture.
        factor: How many times small pictures are enlarged.
    """

    width_px: int
    factor: int

    @classmethod
    def of(cls, pixels: Pixels, smallest_px: int) -> _Layout:
        """Return the measures for pictures like ``pixels``."""
        factor = max(1, math.ceil(smallest_px / max(pixels.shape[:2])))
        return cls(pixels.shape[1] * factor, factor)

    @property
    def gutter_px(self) -> int:
        """The space between two pictures."""
        return max(2, self.width_px // 64)

    @property
    def margin_px(self) -> int:
        """The space around all of them."""
        return 3 * self.gutter_px

    @property
    def font(self) -> Any:
        """The font of the headings."""
        return ImageFont.load_default(size=max(13, min(self.width_px // 9, 28)))

    @property
    def heading_px(self) -> int:
        """The height of a heading."""
        return math.ceil(float(self.font.getbbox("input")[3]) * 1.5)

    @property
    def top(self) -> int:
        """Where the pictures begin."""
        return self.margin_px + self.heading_px

    def left(self, column: int) -> int:
        """Return where the pictures of a column begin."""
        return self.margin_px + column * (self.width_px + self.gutter_px)

    def across(self, columns: int) -> int:
        """Return the width of so many pictures beside each other."""
        return columns * self.width_px + (columns - 1) * self.gutter_px

    def paper(self, width_px: int, height_px: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """Return an empty image for pictures that take so much room, and what draws on it."""
        size = (2 * self.margin_px + width_px, self.top + height_px + self.margin_px)
        grid = Image.new("RGB", size, PAPER)
        return grid, ImageDraw.Draw(grid)

    def head(self, draw: ImageDraw.ImageDraw, name: str, left: int, width_px: int) -> None:
        """Write a heading above pictures that begin at ``left`` and are so wide together."""
        place = left + width_px / 2, self.margin_px + self.heading_px * 0.38
        draw.text(place, name, fill=INK, font=self.font, anchor="mm")


def tile_notes(grid: Image.Image, names: Sequence[str]) -> PngInfo:
    """Return what a grid's file says of itself, so that its pictures can be set beside those of other runs.

    The text chunk ``tiles`` holds JSON: the names of ``columns`` and ``rows``, for each row the ``boxes`` of
    its pictures (x, y, width, height in pixels), and by what factor small pictures were ``enlarged``.

    Args:
        grid: What :func:`draw_grid` drew.
        names: Name of each row.
    """
    notes = PngInfo()
    notes.add_text(TILES, json.dumps({**grid.info[TILES], "rows": list(names)}))
    return notes


def _tile(pixels: Pixels, width_px: int) -> Image.Image:
    image = Image.fromarray(pixels)
    if image.width == width_px:
        return image
    height_px = round(image.height * width_px / image.width)
    whole = width_px % image.width == 0
    return image.resize(
        (width_px, height_px), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    )


class PreviewGrid(Callback):
    """Write ``images/epoch_0001.png`` into the run folder: a row of input | output | target per sample.

    A method that translates both ways has both in a row: input a | output b | cycle a | input b | ... The
    samples are the first of the validation set and stay the same. Of a method without an input side the
    picture is a sheet of what it makes of the same noise each time. W&B and TensorBoard receive the same
    picture.

    Args:
        num_samples: Rows, or pictures of a sheet; no more than there are validation images.
        every_n_epochs: Epochs between two grids; the last epoch has one in any case.
    """

    def __init__(self, num_samples: int = 8, every_n_epochs: int = 1) -> None:
        for key, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise UserError(f"callbacks.previews.{key}={value}: give at least 1")
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the samples and write the grid."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs and not trainer.should_stop:
            return
        shown = preview(trainer, self.num_samples)
        if not shown.samples or not trainer.is_global_zero:
            return
        grid = draw_grid(shown.rows()) if shown.has_inputs else draw_sheet(shown.samples)
        path = preview_file(trainer.default_root_dir, epoch)
        notes = tile_notes(grid, shown.row_names())

        def save(beside: Path) -> None:
            grid.save(beside, format="PNG", compress_level=3, pnginfo=notes)

        write_if_possible(path, save)
        for logger in trainer.loggers:
            # W&B shows floats in [0, 1] black: every logger receives 8-bit pixels.
            if hasattr(logger, "log_image"):
                caption = [preview_caption(epoch)]
                logger.log_image(PREVIEW, [np.asarray(grid)], step=log_step(trainer), caption=caption)
