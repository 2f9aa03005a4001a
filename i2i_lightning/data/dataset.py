"""What loaders and their workers handle: keys to items to batches, from files or from a cache.

Nothing here imports Lightning, so that a worker that is spawned starts without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from i2i_lightning.data.cache import Layout, Pair
from i2i_lightning.data.checks import FileProblem
from i2i_lightning.data.decode import Header, SideFormat, decode, read_header
from i2i_lightning.data.pairs import PairFiles
from i2i_lightning.data.sampler import AnyKey, epoch_and_index, item_rng
from i2i_lightning.data.transforms import Geometry, HeightWidth, resize, window

Array = npt.NDArray[Any]
T = TypeVar("T")

Item = dict[str, Any]
"""One item or batch before it becomes floats: names to arrays or tensors, and ``name`` to text."""


class KeyedDataset(Protocol):
    """A map from a key to an item.

    An item is a dict of arrays without the batch axis plus ``name``, a str. A data set that can fetch a whole
    batch faster than item by item also has ``__getitems__(keys)``, which returns the collated batch.
    """

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, key: AnyKey) -> Item:
        """Return the item of ``key``, augmented as a pure function of the data seed and the key."""
        ...


def collate(items: Item | Sequence[Item]) -> Item:
    """Stack items into a batch; pass on a batch that the data set fetched as a whole.

    Args:
        items: A list of items with the same names and shapes, or a batch.

    Returns:
        Names to tensors with the batch axis in front, and ``name`` to a list of str.
    """
    if isinstance(items, dict):
        return items
    batch: Item = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        if isinstance(first, str):
            batch[key] = values
        elif isinstance(first, Tensor):
            batch[key] = torch.stack(values)
        else:
            batch[key] = torch.from_numpy(np.stack(values))
    return batch


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
            same = replace(self.b, role=self.a.role) == self.a
            right = left if same else self._checked(decode, files.a, self.b)
            left, right = left[:, :half], right[:, half:]
        else:
            left, right = self._checked(decode, files.a, self.a), self._checked(decode, files.b, self.b)
        height, width = left.shape[:2]
        size = self.geometry.cached_size(height, width, self.training)
        left = resize(left, size, self.a.kind == "labels")
        right = resize(right, size, self.b.kind == "labels")
        return _channels_first(left), _channels_first(right)

    def check(self, index: int) -> None:
        """Decode pair ``index`` only to see whether that can be done."""
        self[index]

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
