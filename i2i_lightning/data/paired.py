"""Aligned pairs from files: the data of pix2pix and its kin."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from i2i_lightning.data.cache import (
    MEMORY_SHARE,
    CachedPairs,
    DiskCache,
    Layout,
    Pair,
    available_memory_bytes,
    build_in_memory,
    default_cache_dir,
    digest,
    gib,
    in_threads,
)
from i2i_lightning.data.checks import FileProblem, check_choice, first_names
from i2i_lightning.data.decode import (
    CONVERSIONS,
    KINDS,
    Header,
    SideFormat,
    decode,
    file_palette,
    read_header,
)
from i2i_lightning.data.display import images_to_rgb, labels_to_rgb
from i2i_lightning.data.module import ImageDataModule, Item, collate
from i2i_lightning.data.pairs import LAYOUTS, SPLITS, PairFiles, find_pairs, report
from i2i_lightning.data.sampler import AnyKey, epoch_and_index, item_rng
from i2i_lightning.data.transforms import Geometry, HeightWidth, one_hot, resize, scale_to_network, window
from i2i_lightning.types import PairedBatch, Size, UserError

Array = npt.NDArray[Any]
T = TypeVar("T")

DIRECTIONS = ("a_to_b", "b_to_a")
CACHES = ("memory", "disk", "none")


class PairSource(Protocol):
    """Pairs by index: two pictures of equal height and width, channels first; label maps have no channels."""

    def __getitem__(self, index: int) -> Pair:
        """Return side A and side B of a pair, resized but not cut."""
        ...


@dataclass(frozen=True)
class FilePairs:
    """Pairs that are decoded and resized whenever they are asked for: what the caches are filled from.

    Args:
        files: The pairs' files.
        a: What side A is supposed to be.
        b: What side B is supposed to be.
        geometry: To what size they are brought.
        training: Whether to the training or the validation size.
        root: What messages name files relative to.
    """

    files: Sequence[PairFiles]
    a: SideFormat
    b: SideFormat
    geometry: Geometry
    training: bool
    root: Path | None = None

    def shown(self, path: Path) -> str:
        """Return how messages name a file."""
        inside = self.root is not None and path.is_relative_to(self.root)
        return os.path.relpath(path, self.root) if inside else str(path)

    def __getitem__(self, index: int) -> Pair:
        """Decode and resize pair ``index``."""
        files = self.files[index]
        if files.b is None:
            left = self._checked(decode, files.a, self.a)
            half = left.shape[1] // 2
            right = left if self.b == self.a else self._checked(decode, files.a, self.b)
            left, right = left[:, :half], right[:, half:]
        else:
            left, right = self._checked(decode, files.a, self.a), self._checked(decode, files.b, self.b)
        height, width = left.shape[:2]
        size = self.geometry.cached_size(height, width, self.training)
        left = resize(left, size, self.a.kind == "labels")
        right = resize(right, size, self.b.kind == "labels")
        return _channels_first(left), _channels_first(right)

    def headers(self, index: int) -> tuple[Header, Header]:
        """Check the headers of pair ``index`` and return them at the size the pair is resized to.

        Raises:
            FileProblem: If a side is not what it should be, or the two differ in size.
        """
        files = self.files[index]
        a = self._checked(read_header, files.a, self.a)
        b = self._checked(read_header, files.b or files.a, self.b)
        if files.b is None:
            if a.width % 2:
                raise FileProblem("of odd width, not two halves side by side", detail=f"{a.height}x{a.width}")
            height, width = a.height, a.width // 2
        else:
            height, width = a.height, a.width
            if (a.height, a.width) != (b.height, b.width):
                detail = f"A {a.height}x{a.width}, B {b.height}x{b.width}"
                raise FileProblem("pairs whose sides differ in size, height x width", "must align", detail)
        size = self.geometry.cached_size(height, width, self.training)
        return Header(*size, a.dtype), Header(*size, b.dtype)

    def _checked(self, read: Callable[[Path, SideFormat], T], path: Path, side: SideFormat) -> T:
        """Call ``read(path, side)``; let a problem bear the name of the file that has it, not of the pair."""
        try:
            return read(path, side)
        except FileProblem as problem:
            problem.name = self.shown(path)
            raise

    def layouts(self, headers: Sequence[tuple[Header, Header]]) -> tuple[Layout, Layout]:
        """Return how a cache of these pairs is laid out."""
        layouts = []
        for which, side in enumerate((self.a, self.b)):
            channels = (side.channels,) if side.kind == "image" else ()
            shapes = tuple((*channels, pair[which].height, pair[which].width) for pair in headers)
            layouts.append(Layout(headers[0][which].dtype, shapes))
        return layouts[0], layouts[1]


def _channels_first(array: Array) -> Array:
    """Return ``(H, W, C)`` as contiguous, writable ``(C, H, W)``; ids ``(H, W)`` as they are."""
    return np.array(array if array.ndim == 2 else array.transpose(2, 0, 1), order="C")


class PairedDataset:
    """Windows of pairs, mirrored or not: a pure function of the data seed and the key.

    A batch is fetched as a whole into one array per side, straight from the cache.

    Args:
        source: The pairs.
        names: Their names.
        input_side: 0 if side A is the network's input, 1 if side B is.
        crop: (height, width) of the window, or None for all.
        augment: Place the window at random and mirror as ``flip`` says; else it lies in the middle.
        flip: Mirror half of the items left to right, both sides together.
        seed: The data seed.
    """

    def __init__(
        self,
        source: PairSource,
        names: Sequence[str],
        input_side: int,
        crop: HeightWidth | None,
        augment: bool,
        flip: bool,
        seed: int,
    ) -> None:
        self.source = source
        self.names = names
        self.input_side = input_side
        self.crop = crop
        self.augment = augment
        self.flip = flip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: AnyKey) -> Item:
        """Return one item: ``real_a`` and ``real_b`` channels first (label maps: ids), and ``name``."""
        batch = self.__getitems__([epoch_and_index(key)])
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, keys: Sequence[AnyKey]) -> Item:
        """Return the batch of ``keys``; PyTorch's loader calls this instead of fetching item by item."""
        inputs: list[Array] = []
        targets: list[Array] = []
        names = []
        for key in keys:
            epoch, index = epoch_and_index(key)
            pair = self.source[index]
            mirrored = False
            uniforms = None
            if self.augment:
                row, column, coin = item_rng(self.seed, epoch, index).random(3).tolist()
                uniforms, mirrored = (row, column), self.flip and coin > 0.5
            top, left, height, width = window(pair[0].shape[-2:], self.crop, uniforms)
            views = [side[..., top : top + height, left : left + width] for side in pair]
            if mirrored:
                views = [_mirror(view) for view in views]
            inputs.append(views[self.input_side])
            targets.append(views[1 - self.input_side])
            names.append(self.names[index])
        return {"real_a": _stack(inputs), "real_b": _stack(targets), "name": names}


def _stack(views: Sequence[Array]) -> Tensor:
    batch = np.empty((len(views), *views[0].shape), views[0].dtype)
    for place, view in zip(batch, views, strict=True):
        place[...] = view
    return torch.from_numpy(batch)


def _mirror(view: Array) -> Array:
    """Return ``view`` mirrored left to right; PyTorch's kernel is vectorised, numpy's loop is not."""
    if view.dtype == np.uint16:
        return torch.from_numpy(view.view(np.int16)).flip(-1).numpy().view(np.uint16)
    mirrored: Array = torch.from_numpy(view).flip(-1).numpy()
    return mirrored


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
        for note in found.notes:
            rank_zero_info(note)
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
        options = {"a": asdict(loader.a), "b": asdict(loader.b), "geometry": asdict(loader.geometry)}
        disk = DiskCache(self.cache_dir, split, digest({**options, "training": loader.training}, paths))
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
            decoded = in_threads(lambda i: _forget(loader[good[i]]), decodable, f"checking {split}")
            problems += [outcome for outcome in decoded if outcome is not None]
        if problems:
            return loader, problems
        if self.cache == "none":
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
        return cached or loader, problems

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
            sizes = {shape[-2:] for shape in source.a.layout.shapes}
        else:
            assert isinstance(source, FilePairs)
            headers = (source.headers(index)[0] for index in range(len(source.files)))
            sizes = {(header.height, header.width) for header in headers}
        key = "batch_size" if split == "train" else "val_batch_size"
        batch_size = getattr(self, key)
        if len(sizes) > 1 and batch_size > 1:
            shown = first_names([f"{height}x{width}" for height, width in sorted(sizes)])
            raise UserError(
                f"data.{key}={batch_size}: {split} pictures of {len(sizes)} sizes ({shown}) cannot share "
                f"a batch; set data.{key}=1, or a data.preprocess that cuts them to data.crop_px"
            )
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


def _forget(pair: Pair) -> None:
    """Let go of a pair that was decoded only to see whether it can be."""


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
