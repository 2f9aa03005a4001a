"""What data modules over files share: kinds of pixels, geometry, up-front checks, the cache, display."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from i2i_lightning.data.cache import (
    MEMORY_SHARE,
    CachedPictures,
    DiskCache,
    Layout,
    available_memory_bytes,
    build_in_memory,
    default_cache_dir,
    digest,
    gib,
    in_threads,
)
from i2i_lightning.data.checks import FileProblem, check_choice, first_names
from i2i_lightning.data.dataset import FileSource, PictureSource
from i2i_lightning.data.decode import CONVERSIONS, KINDS, Header, SideFormat, file_palette
from i2i_lightning.data.display import images_to_rgb, labels_to_rgb
from i2i_lightning.data.module import ImageDataModule, Item, collate
from i2i_lightning.data.pairs import SPLITS
from i2i_lightning.data.transforms import Geometry, one_hot, scale_to_network
from i2i_lightning.types import Batch, ImageFormat, UserError

CACHES = ("memory", "disk", "none")


class FileDataModule(ImageDataModule):
    """The base of the data modules that read one or two sides of pictures from files.

    A subclass finds the files in :meth:`setup`, hands them to :meth:`keep`, which checks and caches them, and
    makes its data sets of what comes back.

    Args:
        in_kind: ``image``, or ``labels`` for a label map that becomes one-hot: ``real_a``.
        out_kind: The same for ``real_b``.
        in_channels: The channels of ``real_a``, or its number of classes. Files must agree with it.
        out_channels: The same for ``real_b``.
        geometry: How pictures come to their size.
        flip: Mirror half of the training items left to right.
        convert: ``none``, or ``match`` to convert 8-bit files to the configured one or three channels with
            PIL.
        cache: Where decoded pixels are kept: ``memory``, ``disk`` (memory-mapped), or ``none``.
        cache_dir: The folder of disk caches; None is the user's cache folder.
        batch_size: Training items per rank and step.
        val_batch_size: Validation and test items per rank and step.
        num_workers: Worker processes; None is 0 with the memory cache and at most 4 otherwise.
        seed: The data seed.

    Raises:
        UserError: If an option is impossible.
    """

    def __init__(
        self,
        *,
        in_kind: str,
        out_kind: str,
        in_channels: int,
        out_channels: int,
        geometry: Geometry,
        flip: bool,
        convert: str,
        cache: str,
        cache_dir: str | os.PathLike[str] | None,
        batch_size: int,
        val_batch_size: int,
        num_workers: int | None,
        seed: int,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, seed)
        for key, value, choices in (
            ("in_kind", in_kind, KINDS),
            ("out_kind", out_kind, KINDS),
            ("convert", convert, CONVERSIONS),
            ("cache", cache, CACHES),
        ):
            check_choice(f"data.{key}", value, choices)
        for key, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not 1 <= channels <= 65536:
                raise UserError(f"data.{key}={channels}: must be at least 1")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input = SideFormat("in", in_kind, in_channels, convert)
        self.output = SideFormat("out", out_kind, out_channels, convert)
        self.geometry = geometry
        self.size_px = geometry.crop
        self.flip = flip
        self.cache = cache
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
        self._palettes: dict[str, Tensor | None] = {}
        self._dtypes: dict[str, str] = {}

    def wanted_splits(self, stage: str | None) -> list[str]:
        """Return the splits that ``stage`` needs and that are not there yet."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage or "", SPLITS)
        return [split for split in wanted if getattr(self, f"{split}_set") is None]

    def formats(self) -> tuple[ImageFormat, ImageFormat]:
        """Return what inputs and outputs are, with the depth and palette that :meth:`setup` found."""
        return self._format(self.input), self._format(self.output)

    def _format(self, side: SideFormat) -> ImageFormat:
        palette = self._palettes.get(side.role)
        return ImageFormat(
            kind=cast(Any, side.kind),
            channels=side.channels,
            dtype=cast(Any, self._dtypes.get(side.role, "uint8")),
            palette=None if palette is None else tuple(map(tuple, palette.tolist())),
            convert=side.convert,
        )

    def display_input(self, real_a: Tensor) -> Tensor:
        """Return inputs as RGB, uint8 ``(N, 3, H, W)``; label maps in the files' palette if they have one."""
        return self._display(real_a, self.input)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return outputs or targets as RGB, uint8 ``(N, 3, H, W)``."""
        return self._display(b, self.output)

    def preview_batch(self, n: int) -> Batch:
        """Return those of the first ``n`` validation items that have the first one's sizes, on the CPU."""
        dataset = self._require(self.val_set, "val")
        items = [dataset[0, index] for index in range(min(n, len(dataset)))]
        first = _sizes(items[0])
        return self.to_network(collate([item for item in items if _sizes(item) == first]))

    # Set-up.

    def keep(self, files: FileSource, slug: str, split: str) -> tuple[PictureSource, list[FileProblem]]:
        """Check ``files`` and return them cached as configured, and what is wrong with them.

        Args:
            files: The pictures.
            slug: Readable start for the name of a disk cache's folder.
            split: What messages call them.
        """
        paths = [files.paths(index) for index in range(len(files))]
        names = [files.shown(sides[0]) for sides in paths]
        formats = [(side.kind, side.channels, side.convert) for side in files.sides]
        options = {"sides": formats, "geometry": asdict(files.geometry), "training": files.training}
        sources = [path for sides in paths for path in sides]
        disk = DiskCache(self.cache_dir, _plain(slug), digest(options, sources))
        if self.cache == "disk" and (cached := disk.open()) is not None:
            return cached, []
        if self.cache == "none" and disk.stamp.exists():
            return files, []

        outcomes = in_threads(files.headers, names, f"checking {split}")
        problems = [outcome for outcome in outcomes if isinstance(outcome, FileProblem)]
        good = [index for index, outcome in enumerate(outcomes) if not isinstance(outcome, FileProblem)]
        headers = [outcome for outcome in outcomes if not isinstance(outcome, FileProblem)]
        problems += _mixed_types(files, headers, good)
        if problems or self.cache == "none":
            # Decode whatever can be, so that one report names everything.
            decodable = [names[index] for index in good]
            decoded = in_threads(lambda i: files.check(good[i]), decodable, f"checking {split}")
            problems += [outcome for outcome in decoded if outcome is not None]
        if problems:
            return files, problems
        if self.cache == "none":
            with contextlib.suppress(OSError):  # it only saves the next run a second look
                disk.stamp.parent.mkdir(parents=True, exist_ok=True)
                disk.stamp.touch()
            return files, []

        layouts = files.layouts(headers)
        if self.cache == "memory" and self._fits_in_memory(layouts, split):
            return build_in_memory(files.__getitem__, names, layouts, f"decoding {split}")
        with disk.lock():
            cached = disk.open()
            if cached is None:
                problems = disk.build(files.__getitem__, names, layouts, f"decoding {split}")
                cached = disk.open()
                if cached is not None:
                    rank_zero_info(
                        f"the decoded pixels of {split} are in {disk.folder}; it may be deleted any time"
                    )
        return cached or files, problems

    def _fits_in_memory(self, layouts: Sequence[Layout], split: str) -> bool:
        """Whether the decoded pixels of a split may live in memory; if not, say so."""
        needed = sum(layout.num_bytes for layout in layouts)
        free = available_memory_bytes()
        if self.trainer is not None and self.trainer.world_size > 1:
            reason = "shared by all ranks of a machine"
        elif free is not None and needed > MEMORY_SHARE * free:
            reason = f"{gib(needed)} is too much for the {gib(free)} of memory that are free"
        else:
            return True
        rank_zero_info(f"data.cache=memory: {split} is cached on disk in {self.cache_dir} ({reason})")
        return False

    def check_enough(self, where: str, what: str, count: int) -> None:
        """Raise a ``UserError`` unless ``count`` training items give every rank a batch."""
        ranks = self.trainer.world_size if self.trainer is not None else 1
        if count < self.batch_size * ranks:
            each = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise UserError(
                f"{where}: {count} training {what} are too few for data.batch_size={self.batch_size}{each}; "
                f"at most {count // ranks}"
            )

    def check_batches(self, source: PictureSource, split: str) -> set[tuple[int, int]]:
        """Check that pictures can share a batch, note the sizes of those that are not cut and return them."""
        if self.geometry.crop is not None:
            return {self.geometry.crop}
        if isinstance(source, CachedPictures):
            sizes = {(shape[-2], shape[-1]) for shape in source.blocks[0].layout.shapes}
        else:
            assert isinstance(source, FileSource)
            headers = (source.headers(index)[0] for index in range(len(source)))
            sizes = {(header.height, header.width) for header in headers}
        key = "batch_size" if split == "train" else "val_batch_size"
        batch_size = getattr(self, key)
        if len(sizes) > 1 and batch_size > 1:
            shown = first_names([f"{height}x{width}" for height, width in sorted(sizes)])
            raise UserError(
                f"data.{key}={batch_size}: {split} pictures of {len(sizes)} sizes ({shown}) cannot share "
                f"a batch; set data.{key}=1, or a data.preprocess that cuts them to data.crop_px"
            )
        self._odd_sizes_px |= sizes
        return sizes

    def note_formats(self, side: SideFormat, path: Path, dtype: str) -> None:
        """Note the depth of a side's files, and the palette of its first one."""
        colours = file_palette(path, side.channels) if side.kind == "labels" else None
        self._palettes[side.role] = None if colours is None else torch.from_numpy(colours)
        self._dtypes[side.role] = dtype

    def _display(self, pictures: Tensor, side: SideFormat) -> Tensor:
        if side.kind == "labels":
            return labels_to_rgb(pictures, self._palettes.get(side.role))
        return images_to_rgb(pictures)


def picture_to_network(pictures: Tensor, side: SideFormat) -> Tensor:
    """Return pictures as floats in [-1, 1], or label ids one-hot, on the device that they are on."""
    return one_hot(pictures, side.channels) if side.kind == "labels" else scale_to_network(pictures)


def in_memory(source: PictureSource) -> bool:
    """Return whether pictures come from memory."""
    return isinstance(source, CachedPictures) and source.in_memory


def dtypes(source: PictureSource) -> list[str]:
    """Return what the pixels of each side are, without decoding any."""
    if isinstance(source, CachedPictures):
        return [block.layout.dtype for block in source.blocks]
    assert isinstance(source, FileSource)
    return [header.dtype for header in source.headers(0)]


def _sizes(item: Item) -> list[tuple[int, ...]]:
    return [item[side].shape[-2:] for side in ("real_a", "real_b", "real") if side in item]


def _plain(name: str) -> str:
    """Return ``name`` with everything replaced that a file's name had better not hold."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def _mixed_types(
    files: FileSource, headers: Sequence[tuple[Header, ...]], indices: Sequence[int]
) -> list[FileProblem]:
    """Return a problem for each file that has not the depth of most: a mixture is seldom meant."""
    problems = []
    for which in range(len(files.sides)):
        counts = Counter(pictures[which].dtype for pictures in headers)
        for index, pictures in zip(indices, headers, strict=True):
            usual = counts.most_common(1)[0][0]
            if pictures[which].dtype != usual:
                what = f"{pictures[which].dtype} among {usual} files"
                name = files.shown(files.paths(index)[which])
                problems.append(FileProblem(what, "save all at one depth", name=name))
    return problems
