"""Fixed validation samples, translated each epoch and drawn as a grid: input | output | target or cycle."""

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

from i2i_lightning.callbacks.readings import batches_trained, log_step
from i2i_lightning.callbacks.writing import write_if_possible
from i2i_lightning.loggers.pictures import PREVIEW, Pixels, preview_caption, preview_file
from i2i_lightning.types import UserError

log = logging.getLogger(__name__)

SMALLEST_TILE_PX = 128
TILES = "tiles"
"""Under this name a grid says where its pictures are."""
PAPER, INK = (250, 250, 248), (60, 60, 64)


@dataclass
class Preview:
    """The translated samples of one moment.

    Of a method that translates both ways, samples take turns: one of a to b, one of b to a.

    Attributes:
        names: Name of each sample.
        directions: For each sample, which way it was translated: ``ab`` or ``ba``.
        samples: For each sample, its columns in order (``input``, ``output``, ``target`` or ``cycle``), as
            pictures for people.
        outputs: For each sample, the network's output, float (C, H, W) on the CPU.
        targets: For each sample, the target in the same form; where there are no pairs, a real image of the
            output's domain.
    """

    names: list[str] = field(default_factory=list)
    directions: list[str] = field(default_factory=list)
    samples: list[dict[str, Pixels]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

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
            ways: dict[str, dict[str, Tensor]] = columns if "input" not in columns else {"ab": columns}
            pixels = {
                direction: {
                    name: images.permute(0, 2, 3, 1).cpu().numpy()
                    for name, images in _displayed(datamodule, direction, found).items()
                }
                for direction, found in ways.items()
            }
        size = len(next(iter(ways.values()))["input"])
        for index, (direction, found) in itertools.product(range(size), ways.items()):
            names = batch.get("name") or batch.get(f"name_{direction[0]}") or [""] * size
            made.names.append(Path(str(names[index])).name)
            made.directions.append(direction)
            made.samples.append(
                {name: np.ascontiguousarray(images[index]) for name, images in pixels[direction].items()}
            )
            # Without pairs, the other way's input shows what outputs should be like.
            targets = found.get("target", ways.get(direction[::-1], {}).get("input"))
            if "output" in found and targets is not None:
                made.outputs.append(found["output"][index].float().cpu())
                made.targets.append(targets[index].float().cpu())
    return made


def _displayed(datamodule: Any, direction: str, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the columns of one direction as the data module shows them to people."""
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
    if known is not None and (not known or len(known[0]["real_a"]) >= num_samples):
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
    first = samples[0][names[0]]
    factor = max(1, math.ceil(smallest_px / max(first.shape[:2])))
    width_px = first.shape[1] * factor
    font = ImageFont.load_default(size=max(13, min(width_px // 9, 28)))
    gutter_px = max(2, width_px // 64)
    margin_px = 3 * gutter_px
    heading_px = math.ceil(font.getbbox("input")[3] * 1.5)

    rows = [[_tile(row[name], width_px) for name in names] for row in samples]
    heights = [max(tile.height for tile in row) for row in rows]
    grid = Image.new(
        "RGB",
        (
            2 * margin_px + len(names) * width_px + (len(names) - 1) * gutter_px,
            margin_px + heading_px + sum(heights) + gutter_px * (len(rows) - 1) + margin_px,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(grid)
    for column, name in enumerate(names):
        x = margin_px + column * (width_px + gutter_px)
        draw.text((x + width_px / 2, margin_px + heading_px * 0.38), name, fill=INK, font=font, anchor="mm")
    y = margin_px + heading_px
    boxes: list[list[list[int]]] = []
    for row, height in zip(rows, heights, strict=True):
        boxes.append([])
        for column, tile in enumerate(row):
            x = margin_px + column * (width_px + gutter_px)
            grid.paste(tile, (x, y))
            boxes[-1].append([x, y, tile.width, tile.height])
        y += height + gutter_px
    grid.info[TILES] = {"columns": names, "boxes": boxes, "enlarged": factor}
    return grid


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

    A method that translates both ways has both in a row: input a | output b | cycle a | input b | ...

    The samples are the first of the validation set and stay the same. W&B and TensorBoard receive the same
    picture.

    Args:
        num_samples: Rows.
        every_n_epochs: Epochs between two grids; the last epoch has one in any case.
    """

    def __init__(self, num_samples: int = 8, every_n_epochs: int = 1) -> None:
        for key, value in (("num_samples", num_samples), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise UserError(f"callbacks.previews.{key}={value}: give at least 1")
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Translate the samples and write the grid."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs and not trainer.should_stop:
            return
        shown = preview(trainer, self.num_samples)
        if not shown.samples or not trainer.is_global_zero:
            return
        grid = draw_grid(shown.rows())
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
