"""Aligned pairs from files: the data of pix2pix and its kin."""

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
    CachedPairs,
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
from i2i_lightning.data.dataset import FilePairs, PairedDataset, PairSource
from i2i_lightning.data.decode import CONVERSIONS, KINDS, Header, SideFormat, file_palette
from i2i_lightning.data.display import images_to_rgb, labels_to_rgb
from i2i_lightning.data.module import ImageDataModule, Item, collate
from i2i_lightning.data.pairs import LAYOUTS, SPLITS, PairFiles, find_pairs, report
from i2i_lightning.data.transforms import Geometry, one_hot, scale_to_network
from i2i_lightning.types import ImageFormat, PairedBatch, Size, UserError

DIRECTIONS = ("a_to_b", "b_to_a")
CACHES = ("memory", "disk", "none")


class PairedDataModule(ImageDataModule):
    """Aligned pairs from side-by-side images, two folders, or a CSV, decoded once.

    :meth:`setup` checks every file before anything is trained and reports all that it finds in one error.
    Training items are resized, cut at random and mirrored together; validation items are resized to the size
    of the window and not mirrored.

    Args:
        root: The data set's folder, or the CSV file; see :func:`~i2i_lightning.data.pairs.find_pairs`.
        layout: ``side_by_side``, ``folders`` or ``csv``.
        direction: ``a_to_b`` or ``b_to_a``: which side is the network's input. In side-by-side images A is
            left.
        in_kind: ``image``, or ``labels`` for a label map that becomes one-hot.
        out_kind: The same for the target.
        in_channels: The input's channels, or its number of classes. Files must agree with it.
        out_channels: The same for the target.
        preprocess: How pictures come to their size; see :class:`~i2i_lightning.data.transforms.Geometry`.
        load_px: The size to resize to in training, before the random crop; None is ``crop_px``.
        crop_px: The size of the window, a side or [height, width]; None takes the whole picture.
        multiple_px: What ``preprocess="none"`` rounds the sides to.
        flip: Mirror half of the training pairs left to right.
        convert: ``none``, or ``match`` to convert 8-bit files to the configured one or three channels with
            PIL.
        folder_a: Side A's folder, for ``folders`` without ``root``.
        folder_b: Side B's folder.
        val_fraction: The share held out of the training where there is neither ``val`` nor ``test``.
        cache: Where decoded pixels are kept: ``memory``, ``disk`` (memory-mapped), or ``none``.
        cache_dir: The folder of disk caches; None is the user's cache folder.
        batch_size: Training pairs per rank and step.
        val_batch_size: Validation and test pairs per rank and step.
        num_workers: Worker processes; None is 0 with the memory cache and at most 4 otherwise.
        seed: The data seed.

    Raises:
        UserError: If an option is impossible; in :meth:`setup`, if a file is.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        layout: str = "side_by_side",
        direction: str = "a_to_b",
        in_kind: str = "image",
        out_kind: str = "image",
        in_channels: int = 3,
        out_channels: int = 3,
        preprocess: str = "resize_and_crop",
        load_px: Size | None = 286,
        crop_px: Size | None = 256,
        multiple_px: int = 4,
        flip: bool = True,
        convert: str = "none",
        folder_a: str | os.PathLike[str] | None = None,
        folder_b: str | os.PathLike[str] | None = None,
        val_fraction: float = 0.1,
        cache: str = "memory",
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 1,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, seed)
        for key, value, choices in (
            ("layout", layout, LAYOUTS),
            ("direction", direction, DIRECTIONS),
            ("in_kind", in_kind, KINDS),
            ("out_kind", out_kind, KINDS),
            ("convert", convert, CONVERSIONS),
            ("cache", cache, CACHES),
        ):
            check_choice(f"data.{key}", value, choices)
        for key, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not 1 <= channels <= 65536:
                raise UserError(f"data.{key}={channels}: must be at least 1")
        self.root = root
        self.layout = layout
        self.direction = direction
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input = SideFormat("in", in_kind, in_channels, convert)
        self.output = SideFormat("out", out_kind, out_channels, convert)
        self.geometry = Geometry(preprocess, load_px, crop_px, multiple_px)
        self.size_px = self.geometry.crop
        self.flip = flip
        self.folder_a = folder_a
        self.folder_b = folder_b
        self.val_fraction = val_fraction
        self.cache = cache
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
        self._palettes: dict[str, Tensor | None] = {}
        self._dtypes: dict[str, str] = {}

    @property
    def input_side(self) -> int:
        """0 if side A is the network's input, 1 if side B is."""
        return DIRECTIONS.index(self.direction)

    def setup(self, stage: str | None = None) -> None:
        """Check and decode the splits that ``stage`` needs, unless that was done before.

        Raises:
            UserError: If files are missing, unmatched, unreadable, not as configured, or too few.
        """
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage or "", SPLITS)
        needed = [split for split in wanted if getattr(self, f"{split}_set") is None]
        if not needed:
            return
        found = find_pairs(self.root, self.layout, self.folder_a, self.folder_b, self.val_fraction)
        for split in needed:
            if split in found.notes:
                rank_zero_info(found.notes[split])
        root = None if self.root is None else Path(self.root).expanduser()
        sides = (self.input, self.output) if self.input_side == 0 else (self.output, self.input)
        sources: dict[str, PairSource] = {}
        problems: list[FileProblem] = []
        for split in needed:
            files, training = found.splits[split], split == "train"
            if split == "test" and "val" in sources and files is found.splits["val"]:
                sources[split] = sources["val"]
                continue
            loader = FilePairs(files, *sides, self.geometry, training, root)
            sources[split], more = self._source(loader, split)
            problems += more
        report(found, needed, problems)
        if "train" in needed:
            self._check_enough(found.where, len(found.splits["train"]))
        for split, source in sources.items():
            self._check_batches(source, split)
            names, training = [files.name for files in found.splits[split]], split == "train"
            flip, crop = self.flip and training, self.geometry.crop
            dataset = PairedDataset(source, names, self.input_side, crop, training, flip, self.seed)
            setattr(self, f"{split}_set", dataset)
        self.cache_in_memory = all(
            isinstance(source, CachedPairs) and source.in_memory for source in sources.values()
        )
        self._read_palettes(found.splits[needed[0]][0])
        self._dtypes = dict(zip([side.role for side in sides], _dtypes(sources[needed[0]]), strict=True))

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

    def to_network(self, batch: Item) -> PairedBatch:
        """Return images as floats in [-1, 1] and label maps one-hot, on the device the batch is on."""
        return {
            "real_a": _to_network(batch["real_a"], self.input),
            "real_b": _to_network(batch["real_b"], self.output),
            "name": batch["name"],
        }

    def display_input(self, real_a: Tensor) -> Tensor:
        """Return inputs as RGB, uint8 ``(N, 3, H, W)``; label maps in the files' palette if they have one."""
        return self._display(real_a, self.input)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return outputs or targets as RGB, uint8 ``(N, 3, H, W)``."""
        return self._display(b, self.output)

    def preview_batch(self, n: int) -> PairedBatch:
        """Return those of the first ``n`` validation items that have the first one's size, on the CPU."""
        dataset = self._require(self.val_set, "val")
        items = [dataset[0, index] for index in range(min(n, len(dataset)))]
        size = items[0]["real_a"].shape[-2:]
        return self.to_network(collate([item for item in items if item["real_a"].shape[-2:] == size]))

    # Set-up.

    def _source(self, loader: FilePairs, split: str) -> tuple[PairSource, list[FileProblem]]:
        """Return the pairs of a split, cached as configured, and what is wrong with them."""
        names = [loader.shown(files.a) for files in loader.files]
        paths = [path for files in loader.files for path in (files.a, files.b) if path is not None]
        formats = [(side.kind, side.channels, side.convert) for side in (loader.a, loader.b)]
        options = {"sides": formats, "geometry": asdict(loader.geometry), "training": loader.training}
        disk = DiskCache(self.cache_dir, self._slug(split), digest(options, paths))
        if self.cache == "disk" and (cached := disk.open()) is not None:
            return cached, []
        if self.cache == "none" and disk.stamp.exists():
            return loader, []

        outcomes = in_threads(loader.headers, names, f"checking {split}")
        problems = [outcome for outcome in outcomes if isinstance(outcome, FileProblem)]
        good = [index for index, outcome in enumerate(outcomes) if not isinstance(outcome, FileProblem)]
        headers = [outcome for outcome in outcomes if not isinstance(outcome, FileProblem)]
        problems += _mixed_types(loader, headers, good)
        if problems or self.cache == "none":
            # Decode whatever can be, so that one report names everything.
            decodable = [names[index] for index in good]
            decoded = in_threads(lambda i: loader.check(good[i]), decodable, f"checking {split}")
            problems += [outcome for outcome in decoded if outcome is not None]
        if problems:
            return loader, problems
        if self.cache == "none":
            with contextlib.suppress(OSError):  # it only saves the next run a second look
                disk.stamp.parent.mkdir(parents=True, exist_ok=True)
                disk.stamp.touch()
            return loader, []

        layouts = loader.layouts(headers)
        if self.cache == "memory" and self._fits_in_memory(layouts, split):
            return build_in_memory(loader.__getitem__, names, layouts, f"decoding {split}")
        with disk.lock():
            cached = disk.open()
            if cached is None:
                problems = disk.build(loader.__getitem__, names, layouts, f"decoding {split}")
                cached = disk.open()
                if cached is not None:
                    rank_zero_info(
                        f"the decoded pixels of {split} are in {disk.folder}; it may be deleted any time"
                    )
        return cached or loader, problems

    def _slug(self, split: str) -> str:
        """Return a readable start for the name of a cache's folder: the data set's name and the split."""
        name = Path(self.root if self.root is not None else self.folder_a or "").expanduser().resolve().stem
        return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in f"{name}-{split}")

    def _fits_in_memory(self, layouts: tuple[Layout, Layout], split: str) -> bool:
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

    def _check_enough(self, where: str, pairs: int) -> None:
        ranks = self.trainer.world_size if self.trainer is not None else 1
        if pairs < self.batch_size * ranks:
            each = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise UserError(
                f"{where}: {pairs} training pairs are too few for data.batch_size={self.batch_size}{each}; "
                f"at most {pairs // ranks}"
            )

    def _check_batches(self, source: PairSource, split: str) -> None:
        """Check that pictures which are not cut can share a batch, and note their size if it is one."""
        if self.geometry.crop is not None:
            return
        if isinstance(source, CachedPairs):
            sizes = {(shape[-2], shape[-1]) for shape in source.a.layout.shapes}
        else:
            assert isinstance(source, FilePairs)
            headers = (source.headers(index)[0] for index in range(len(source.files)))
            training = split == "train"
            sizes = {self.geometry.cached_size(header.height, header.width, training) for header in headers}
        key = "batch_size" if split == "train" else "val_batch_size"
        batch_size = getattr(self, key)
        if len(sizes) > 1 and batch_size > 1:
            shown = first_names([f"{height}x{width}" for height, width in sorted(sizes)])
            raise UserError(
                f"data.{key}={batch_size}: {split} pictures of {len(sizes)} sizes ({shown}) cannot share "
                f"a batch; set data.{key}=1, or a data.preprocess that cuts them to data.crop_px"
            )
        self._odd_sizes_px |= sizes
        if split == "train" and len(sizes) == 1:
            height, width = sizes.pop()
            self.size_px = height, width

    def _read_palettes(self, files: PairFiles) -> None:
        """Show label maps in the colours of their own files where they have some."""
        sides = (files.a, files.b or files.a)
        for side, path in ((self.input, sides[self.input_side]), (self.output, sides[1 - self.input_side])):
            colours = file_palette(path, side.channels) if side.kind == "labels" else None
            self._palettes[side.role] = None if colours is None else torch.from_numpy(colours)

    def _display(self, pictures: Tensor, side: SideFormat) -> Tensor:
        if side.kind == "labels":
            return labels_to_rgb(pictures, self._palettes.get(side.role))
        return images_to_rgb(pictures)


def _to_network(pictures: Tensor, side: SideFormat) -> Tensor:
    return one_hot(pictures, side.channels) if side.kind == "labels" else scale_to_network(pictures)


def _dtypes(source: PairSource) -> tuple[str, str]:
    """Return the types of side A and side B; all files of a side have the same."""
    if isinstance(source, CachedPairs):
        return source.a.layout.dtype, source.b.layout.dtype
    assert isinstance(source, FilePairs)
    a, b = source.headers(0)
    return a.dtype, b.dtype


def _mixed_types(
    loader: FilePairs, headers: Sequence[tuple[Header, Header]], indices: Sequence[int]
) -> list[FileProblem]:
    """Return a problem for each file that has not the depth of most: a mixture is seldom meant."""
    problems = []
    for which in (0, 1):
        counts = Counter(pair[which].dtype for pair in headers)
        for index, pair in zip(indices, headers, strict=True):
            usual = counts.most_common(1)[0][0]
            if pair[which].dtype != usual:
                files = loader.files[index]
                path = files.a if which == 0 or files.b is None else files.b
                what = f"{pair[which].dtype} among {usual} files"
                problems.append(FileProblem(what, "save all at one depth", name=loader.shown(path)))
    return problems
