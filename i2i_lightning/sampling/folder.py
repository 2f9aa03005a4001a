"""What a generator draws, into a folder: samples, with a grid and latents; matrices; animations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.checkpoints.latents import SUFFIX, Latent, save_latent
from i2i_lightning.sampling.pictures import to_picture, write_png
from i2i_lightning.sampling.sampler import Points, Sampler, frame_count
from i2i_lightning.sampling.sheets import Layout, Sheet, grid_layout, tile, tile_side
from i2i_lightning.sampling.videos import Animation


@dataclass
class Gallery:
    """A folder of pictures of one generator.

    Args:
        sampler: Draws them.
        folder: Where they are to be; it is made with the first one.
        source: What the generator was loaded by.
        tile_px: Side of a picture in sheets and animations; None takes one that is good to look at.
        progress: Called for each image that was synthesised.
    """

    sampler: Sampler
    folder: Path
    source: str
    tile_px: int | None = None
    progress: Callable[[], None] = lambda: None
    notes: dict[str, str] = field(init=False)
    """What every file says of itself."""

    def __post_init__(self) -> None:
        sampler = self.sampler
        self.notes = {
            "generator": Path(self.source).name,
            "fingerprint": sampler.generator.fingerprint(),
            "truncation": f"{sampler.truncation:g}",
            "noise": sampler.noise,
        }
        if sampler.cutoff is not None:
            self.notes["cutoff"] = str(sampler.cutoff)

    @property
    def side_px(self) -> int:
        """Side of a picture in sheets."""
        return tile_side(self.sampler.generator.size_px, self.tile_px)

    def sample_layout(self, seeds: Sequence[int], labels: Sequence[int | None]) -> Layout:
        """Return the layout of the grid: a row for each class, where there are several."""
        if len(labels) > 1:
            return Layout(len(seeds), len(labels), self.side_px)
        return grid_layout(len(seeds), self.side_px)

    def write_samples(
        self,
        seeds: Sequence[int],
        labels: Sequence[int | None] = (None,),
        grid: bool = True,
        files: bool = True,
        latents: bool = True,
    ) -> list[str]:
        """Draw every seed in every class.

        Args:
            seeds: The seeds, each once.
            labels: The classes, each once; None for a generator without.
            grid: Write ``grid.png``.
            files: Write ``images/seed0000.png``, ...
            latents: Write ``latents/seed0000.safetensors``, ...

        Returns:
            What was written, for people.
        """
        layout = self.sample_layout(seeds, labels)
        sheet = Sheet(layout) if grid else None
        for row, label in enumerate(labels):
            for column, (seed, points, image) in enumerate(self.sampler.samples(seeds, label)):
                several = f"_class{label}" if len(labels) > 1 else ""
                name = f"seed{seed:04d}{several}"
                notes = {"seed": str(seed), **({} if label is None else {"label": str(label)}), **self.notes}
                picture = to_picture(image)
                if files:
                    write_png(self.folder / "images" / f"{name}.png", picture, notes)
                if latents:
                    save_latent(
                        self.folder / "latents" / f"{name}{SUFFIX}", self._latent(seed, points, label)
                    )
                if sheet is not None:
                    words = f"{seed}, class {label}" if several else str(seed)
                    place = (column, row) if several else (column % layout.columns, column // layout.columns)
                    sheet.put(*place, picture, words)
                self.progress()
        count = len(seeds) * len(labels)
        written = []
        if sheet is not None:
            notes = {"seeds": json.dumps(list(seeds)), "labels": json.dumps(list(labels)), **self.notes}
            write_png(self.folder / "grid.png", sheet.image, notes)
            written.append(f"grid.png, {layout.columns} x {layout.rows}")
        written += [f"images/, {counted(count, 'PNG file')}"] if files else []
        written += [f"latents/, {counted(count, 'safetensors file')}"] if latents else []
        return written

    def _latent(self, seed: int, points: Points, label: int | None) -> Latent:
        """Return the latent of one sample, with what its picture needs beside it."""
        sampler = self.sampler
        noise: list[Tensor] | None
        if points.noise == "none":  # a latent without maps has those of the generator
            noise = [torch.zeros(1, 1, *shape) for shape in sampler.generator.noise_shapes]
        else:
            noise = None if points.noise == "const" else points.noise
        return Latent(
            points.w_plus[0],
            self.notes["fingerprint"],
            f"seed {seed}" if label is None else f"seed {seed}, class {label}",
            noise,
            sampler.one_hot(label),
            generator=self.source,
            settings={
                "seed": seed,
                "truncation": sampler.truncation,
                "cutoff": sampler.cutoff,
                "noise": sampler.noise,
                "label": label,
            },
        )

    def matrix_layout(self, bases: Sequence[int], styles: Sequence[int]) -> Layout:
        """Return the layout of a style-mixing matrix."""
        return Layout(len(styles) + 1, len(bases) + 1, self.side_px, margin=True)

    def write_matrix(
        self, bases: Sequence[int], styles: Sequence[int], rows: Sequence[int], label: int | None = None
    ) -> str:
        """Draw ``mixing.png``: the seeds ``bases`` at the left, ``styles`` at the top, mixtures in between.

        Args:
            bases: Seeds that keep all but ``rows`` of w_plus.
            styles: Seeds that ``rows`` come from.
            rows: Rows of w_plus.
            label: The class of all.

        Returns:
            What was written, for people.
        """
        sheet = Sheet(self.matrix_layout(bases, styles))
        for column, (seed, _, image) in enumerate(self.sampler.samples(styles, label), start=1):
            sheet.put(column, 0, to_picture(image), f"styles of {seed}")
            self.progress()
        for row, (seed, _, image) in enumerate(self.sampler.samples(bases, label), start=1):
            sheet.put(0, row, to_picture(image), str(seed))
            self.progress()
        for number, image in enumerate(self.sampler.mixtures(bases, styles, rows, label)):
            row, column = divmod(number, len(styles))
            sheet.put(column + 1, row + 1, to_picture(image))
            self.progress()
        notes = {
            "row_seeds": json.dumps(list(bases)),
            "column_seeds": json.dumps(list(styles)),
            "mixed_rows": json.dumps(list(rows)),
            **({} if label is None else {"label": str(label)}),
            **self.notes,
        }
        write_png(self.folder / "mixing.png", sheet.image, notes)
        mixed = f"rows {_span(rows)} of w_plus from the seeds at the top"
        return f"mixing.png, {len(bases)} x {len(styles)}, {mixed}"

    def write_interpolation(
        self,
        seeds: Sequence[int],
        frames: int,
        space: Literal["z", "w"],
        animation: Animation,
        label: int | None = None,
    ) -> str:
        """Write ``interpolation.webp``, or of another format: a way from seed to seed.

        Args:
            seeds: At least two.
            frames: Images from one to the next.
            space: ``z`` or ``w``.
            animation: How it is written. Where it loops, the way returns to the first seed.
            label: The class of all.

        Returns:
            What was written, for people.
        """
        count = frame_count(len(seeds), frames, animation.loop)

        def pictures() -> Iterator[Image.Image]:
            for image in self.sampler.interpolation(seeds, frames, space, animation.loop, label):
                yield tile(to_picture(image), self.video_px)
                self.progress()

        notes = {
            "seeds": json.dumps(list(seeds)),
            "frames": str(frames),
            "space": space,
            **({} if label is None else {"label": str(label)}),
            **self.notes,
        }
        name = f"interpolation.{animation.format}"
        animation.write(self.folder / name, pictures(), count, notes)
        return f"{name}, {counted(count, 'image')}, {count / animation.fps:.1f} s"

    @property
    def video_px(self) -> int:
        """Side of an animation: that of the images, or a whole factor more where they are small."""
        size = self.sampler.generator.size_px
        return self.tile_px or max(size, tile_side(size, None))


def counted(count: int, noun: str) -> str:
    """Return ``count`` with its noun, in the plural where it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _span(rows: Sequence[int]) -> str:
    """Return ascending numbers as ranges: ``0-3, 6``."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
