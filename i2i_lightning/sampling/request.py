"""What is to be drawn, as people write it: seeds, classes, a mixing matrix, a way from seed to seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from i2i_lightning.data.checks import check_choice
from i2i_lightning.editing.mixing import rows_of
from i2i_lightning.editing.ranges import as_written, whole_numbers
from i2i_lightning.sampling.folder import Gallery
from i2i_lightning.sampling.sampler import MAX_SEED, Sampler, frame_count
from i2i_lightning.sampling.videos import Animation
from i2i_lightning.types import UserError

DEFAULT_SEEDS = "0-35"
LAYERS = "coarse"
VIDEO = {
    "space": "w",
    "frames": 24,
    "fps": Animation.fps,
    "loop": Animation.loop,
    "format": Animation.format,
}
"""What stands in the config where nothing is said of a matrix, or a video."""


@dataclass(frozen=True)
class Request:
    """What is to be drawn.

    Args:
        seeds: Seeds of the samples, each once; none where there is something else to draw.
        labels: The classes of all, each once; ``[None]`` for a generator without.
        mixing: Seeds at the left and at the top of a mixing matrix; none for no matrix.
        layers: The rows of w_plus that come from the top, as :func:`rows_of` reads them.
        way: Seeds of an interpolation; none for no interpolation.
        frames: Its images from one seed to the next.
        space: z or w.
        animation: How it is written.
        grid: Write a grid of the samples.
        files: Write each sample.
        latents: Write the latent of each sample.
    """

    seeds: Sequence[int]
    labels: Sequence[int | None]
    mixing: tuple[Sequence[int], Sequence[int]]
    layers: Any
    way: Sequence[int]
    frames: int
    space: Literal["z", "w"]
    animation: Animation
    grid: bool = True
    files: bool = True
    latents: bool = True

    @classmethod
    def read(cls, options: dict[str, Any]) -> Request:
        """Return what ``options``, named as in the config of the command, ask for.

        Raises:
            UserError: If one of them is impossible for every generator, or says how to draw what is not asked
                for.
        """

        def seeds_of(key: str, value: Any) -> list[int]:
            return [] if value is None else whole_numbers(value, key, MAX_SEED, "seeds")

        mixing, video, label = options["mixing"], options["video"], options["label"]
        seeds = seeds_of("seeds", options["seeds"])
        way = seeds_of("interpolate", options["interpolate"])
        matrix = (
            seeds_of("mixing.rows", mixing["rows"]),
            seeds_of("mixing.columns", mixing["columns"]),
        )
        if bool(matrix[0]) != bool(matrix[1]):
            given, other = ("rows", "columns") if matrix[0] else ("columns", "rows")
            raise UserError(
                f"mixing.{given}={as_written(mixing[given])}: a matrix needs mixing.{other} as well"
            )
        if not matrix[0] and mixing["layers"] != LAYERS:
            shown = as_written(mixing["layers"])
            raise UserError(f"mixing.layers={shown}: needs mixing.rows and mixing.columns")
        for key, default in VIDEO.items():
            if not way and video[key] != default:
                shown = f"{video[key]:g}" if key == "fps" else as_written(video[key])
                shown = shown.lower() if key == "loop" else shown
                raise UserError(f"video.{key}={shown}: needs interpolate")
        if len(way) == 1:
            raise UserError(f"interpolate={way[0]}: a way needs two seeds at least, such as 0-5")
        if not (seeds or way or matrix[0]):
            seeds = whole_numbers(DEFAULT_SEEDS, "seeds", MAX_SEED)
        labels: list[int | None] = [None]
        if label is not None:
            labels = list(dict.fromkeys(whole_numbers(label, "label", MAX_SEED, "classes")))
        if len(labels) > 1 and (way or matrix[0]):
            raise UserError(f"label={as_written(label)}: matrices and interpolations are of one class")
        if video["frames"] < 1:
            raise UserError(f"video.frames={video['frames']}: give at least 1 from seed to seed")
        check_choice("video.space", video["space"], ("w", "z"))
        seeds = list(dict.fromkeys(seeds))
        if seeds and not (options["grid"] or options["files"] or options["latents"]):
            raise UserError("grid=false files=false latents=false: nothing is left to write")
        return cls(
            seeds,
            labels,
            matrix,
            mixing["layers"],
            way,
            video["frames"],
            video["space"],
            Animation(video["format"], video["fps"], video["loop"]),
            options["grid"],
            options["files"],
            options["latents"],
        )

    def check(self, sampler: Sampler, gallery: Gallery) -> None:
        """Raise ``UserError`` if this generator cannot draw it, or a picture would be too large."""
        for label in self.labels:
            sampler.check_label(label)
        if self.seeds and self.grid:
            gallery.sample_layout(self.seeds, self.labels).check("grid", ", or grid=false")
        if self.mixing[0]:
            self._rows(sampler)
            gallery.matrix_layout(*self.mixing).check("mixing")
        if self.way:
            self.animation.check_size(gallery.video_px, self._num_frames)

    @property
    def _num_frames(self) -> int:
        return frame_count(len(self.way), self.frames, self.animation.loop) if self.way else 0

    def _rows(self, sampler: Sampler) -> list[int]:
        return rows_of(self.layers, sampler.generator.row_names, "mixing.layers")

    @property
    def num_images(self) -> int:
        """How many images are synthesised."""
        bases, styles = map(len, self.mixing)
        return len(self.seeds) * len(self.labels) + bases * styles + bases + styles + self._num_frames

    def draw(self, gallery: Gallery) -> list[str]:
        """Draw everything; return what was written, for people."""
        written = []
        if self.seeds:
            written += gallery.write_samples(self.seeds, self.labels, self.grid, self.files, self.latents)
        if self.mixing[0]:
            written.append(gallery.write_matrix(*self.mixing, self._rows(gallery.sampler), self.labels[0]))
        if self.way:
            written.append(
                gallery.write_interpolation(self.way, self.frames, self.space, self.animation, self.labels[0])
            )
        return written
