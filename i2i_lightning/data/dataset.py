"""What loaders and their workers handle: keys to items to batches, from files or from a cache.

Nothing here imports Lightning, so that a worker that is spawned starts without it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from i2i_lightning.data.cache import Layout, Pictures
from i2i_lightning.data.checks import FileProblem
from i2i_lightning.data.decode import Header, SideFormat, decode, read_header
from i2i_lightning.data.pairs import PairFiles
from i2i_lightning.data.sampler import AnyKey, epoch_and_index, item_rng
from i2i_lightning.data.transforms import Geometry, HeightWidth, resize, window
from i2i_lightning.types import UserError

Array = npt.NDArray[Any]
T = TypeVar("T")

Item = dict[str, Any]
"""One item or batch before it becomes floats: names to arrays or tensors, and ``name`` to text."""

Uniforms = tuple[float, ...]
"""Three numbers in [0, 1): where a window lies, row and column, and whether it is mirrored."""


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


class PictureSource(Protocol):
    """Pictures by index, channels first; label maps have no channels. The two of a pair are equally large."""

    def __getitem__(self, index: int) -> Pictures:
        """Return the pictures of ``index``, resized but not cut: both sides of a pair, or one picture."""
        ...


class FileSource(ABC):
    """Pictures that are decoded and resized whenever they are asked for: what the caches are filled from.

    Attributes:
        geometry: To what size they are brought.
        training: Whether to the training or the validation size.
        root: What messages name files relative to.
    """

    geometry: Geometry
    training: bool
    root: Path | None

    @property
    @abstractmethod
    def sides(self) -> tuple[SideFormat, ...]:
        """What each side is supposed to be."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of pairs, or of single pictures."""

    @abstractmethod
    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the file of each side; a file that holds both comes twice."""

    @abstractmethod
    def headers(self, index: int) -> tuple[Header, ...]:
        """Check the headers at ``index`` and return them at the size that the pictures are resized to.

        Raises:
            FileProblem: If a file is not what it should be.
        """

    @abstractmethod
    def __getitem__(self, index: int) -> Pictures:
        """Decode and resize what ``index`` stands for."""

    def shown(self, path: Path) -> str:
        """Return how messages name a file."""
        inside = self.root is not None and path.is_relative_to(self.root)
        return os.path.relpath(path, self.root) if inside else str(path)

    def check(self, index: int) -> None:
        """Decode what ``index`` stands for only to see whether that can be done."""
        self[index]

    def checked(self, read: Callable[[Path, SideFormat], T], path: Path, side: SideFormat) -> T:
        """Call ``read(path, side)``; let a problem bear the name of the file that has it, not of the pair."""
        try:
            return read(path, side)
        except FileProblem as problem:
            problem.name = self.shown(path)
            raise
        except OSError as error:  # it went after its header was read, or its disk did
            gone = isinstance(error, FileNotFoundError)
            detail = "" if gone else error.strerror or str(error)
            what = "missing" if gone else "not readable"
            raise FileProblem(what, detail=detail, name=self.shown(path)) from error

    def resized(self, array: Array, side: SideFormat) -> Array:
        """Return a decoded picture at its cached size, contiguous, channels first."""
        height, width = array.shape[:2]
        size = self.geometry.cached_size(height, width, self.training)
        return _channels_first(resize(array, size, side.kind == "labels"))

    def layouts(self, headers: Sequence[tuple[Header, ...]]) -> list[Layout]:
        """Return how a cache of these pictures is laid out, side by side."""
        layouts = []
        for which, side in enumerate(self.sides):
            channels = (side.channels,) if side.kind == "image" else ()
            shapes = tuple((*channels, pictures[which].height, pictures[which].width) for pictures in headers)
            layouts.append(Layout(headers[0][which].dtype, shapes))
        return layouts


@dataclass(frozen=True)
class FilePairs(FileSource):
    """Aligned pairs from files.

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

    @property
    def sides(self) -> tuple[SideFormat, ...]:
        """What A and B are supposed to be."""
        return self.a, self.b

    def __len__(self) -> int:
        return len(self.files)

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the files of A and B, which may be one."""
        files = self.files[index]
        return files.a, files.b or files.a

    def __getitem__(self, index: int) -> Pictures:
        """Decode and resize pair ``index``."""
        files = self.files[index]
        if files.b is None:
            left = self.checked(decode, files.a, self.a)
            half = left.shape[1] // 2
            same = replace(self.b, role=self.a.role) == self.a
            right = left if same else self.checked(decode, files.a, self.b)
            left, right = left[:, :half], right[:, half:]
        else:
            left, right = self.checked(decode, files.a, self.a), self.checked(decode, files.b, self.b)
        return self.resized(left, self.a), self.resized(right, self.b)

    def headers(self, index: int) -> tuple[Header, ...]:
        """Check the headers of pair ``index`` and return them at the size the pair is resized to.

        Raises:
            FileProblem: If a side is not what it should be, or the two differ in size.
        """
        files = self.files[index]
        a = self.checked(read_header, files.a, self.a)
        b = self.checked(read_header, files.b or files.a, self.b)
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


@dataclass(frozen=True)
class FileImages(FileSource):
    """The pictures of one side of unpaired data.

    Args:
        files: Their files.
        side: What they are supposed to be.
        geometry: To what size they are brought.
        training: Whether to the training or the validation size.
        root: What messages name files relative to.
    """

    files: Sequence[Path]
    side: SideFormat
    geometry: Geometry
    training: bool
    root: Path | None = None

    @property
    def sides(self) -> tuple[SideFormat, ...]:
        """What the pictures are supposed to be: one side."""
        return (self.side,)

    def __len__(self) -> int:
        return len(self.files)

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the file of picture ``index``."""
        return (self.files[index],)

    def __getitem__(self, index: int) -> Pictures:
        """Decode and resize picture ``index``."""
        return (self.resized(self.checked(decode, self.files[index], self.side), self.side),)

    def headers(self, index: int) -> tuple[Header, ...]:
        """Check the header of picture ``index`` and return it at the size the picture is resized to."""
        header = self.checked(read_header, self.files[index], self.side)
        return (Header(*self.geometry.cached_size(header.height, header.width, self.training), header.dtype),)


def _channels_first(array: Array) -> Array:
    """Return ``(H, W, C)`` as contiguous, writable ``(C, H, W)``; ids ``(H, W)`` as they are."""
    return np.array(array if array.ndim == 2 else array.transpose(2, 0, 1), order="C")


def fetch(source: PictureSource, index: int) -> Pictures:
    """Return the pictures of ``index`` while a run goes on, long after its files were checked.

    Raises:
        UserError: If a file is gone or damaged by now; it names the file.
    """
    try:
        return source[index]
    except FileProblem as problem:
        root = source.root if isinstance(source, FileSource) else None
        detail = f" ({problem.detail})" if problem.detail else ""
        path = problem.name if root is None else root / problem.name
        raise UserError(
            f"{path}: {problem.what}{detail}, though its header was in order when the run began"
        ) from problem


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
        source: PictureSource,
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
            uniforms = item_rng(self.seed, epoch, index).random(3).tolist() if self.augment else None
            views = cut(fetch(self.source, index), self.crop, uniforms, self.flip)
            inputs.append(views[self.input_side])
            targets.append(views[1 - self.input_side])
            names.append(self.names[index])
        return {"real_a": _stack(inputs), "real_b": _stack(targets), "name": names}


class UnpairedDataset:
    """Windows of the pictures of two sets: a pure function of the data seed and the key.

    An index names a picture of the set that an epoch walks through. Its partner is drawn uniformly from the
    other set by the key's own generator, as are the two windows and mirrorings, which have nothing to do with
    each other. Without augmentation the sets are walked through in step, the shorter one again and again, and
    items say which pictures come for the first time.

    Args:
        sources: The pictures of A and of B.
        names: Their names.
        crop: (height, width) of the window, or None for all.
        augment: Draw partners and windows, and mirror as ``flip`` says.
        flip: Mirror half of the pictures left to right.
        epoch: Which set an epoch walks through: ``a``, ``b``, or the ``longer`` one.
        seed: The data seed.
    """

    def __init__(
        self,
        sources: tuple[PictureSource, PictureSource],
        names: tuple[Sequence[str], Sequence[str]],
        crop: HeightWidth | None,
        augment: bool,
        flip: bool,
        epoch: str,
        seed: int,
    ) -> None:
        self.sources = sources
        self.names = names
        self.crop = crop
        self.augment = augment
        self.flip = flip
        self.walked = int(len(names[1]) > len(names[0])) if epoch == "longer" else "ab".index(epoch)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.names[self.walked])

    def __getitem__(self, key: AnyKey) -> Item:
        """Return one item: ``real_a``, ``real_b`` channels first (label maps: ids), and their names."""
        batch = self.__getitems__([epoch_and_index(key)])
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, keys: Sequence[AnyKey]) -> Item:
        """Return the batch of ``keys``; PyTorch's loader calls this instead of fetching item by item."""
        plain = [epoch_and_index(key) for key in keys]
        indices, draws = zip(*[self.partners(*key) for key in plain], strict=True)
        batch: Item = {}
        for side, letter in enumerate("ab"):
            views = [
                cut(fetch(self.sources[side], pair[side]), self.crop, draw and draw[side], self.flip)[0]
                for pair, draw in zip(indices, draws, strict=True)
            ]
            batch[f"real_{letter}"] = _stack(views)
            batch[f"name_{letter}"] = [self.names[side][pair[side]] for pair in indices]
            if not self.augment:
                batch[f"first_{letter}"] = torch.tensor([index < len(self.names[side]) for _, index in plain])
        return batch

    def partners(self, epoch: int, index: int) -> tuple[tuple[int, int], tuple[Uniforms, Uniforms] | None]:
        """Return which pictures of A and B meet, and the numbers in [0, 1) that place and mirror each."""
        other_size = len(self.names[1 - self.walked])
        if not self.augment:
            return self._in_order(index, index % other_size), None
        partner, *draws = item_rng(self.seed, epoch, index).random(7).tolist()
        return self._in_order(index, int(partner * other_size)), (tuple(draws[:3]), tuple(draws[3:]))

    def _in_order(self, walked: int, other: int) -> tuple[int, int]:
        return (walked, other) if self.walked == 0 else (other, walked)


class ImagesDataset:
    """Windows of the pictures of one set, mirrored or not: a pure function of the data seed and the key.

    Args:
        source: The pictures.
        names: Their names.
        labels: The class of each, from 0; None where they have none.
        crop: (height, width) of the window, or None for all.
        augment: Place the window at random and mirror as ``flip`` says; else it lies in the middle.
        flip: Mirror half of the items left to right.
        seed: The data seed.
    """

    def __init__(
        self,
        source: PictureSource,
        names: Sequence[str],
        labels: Sequence[int] | None,
        crop: HeightWidth | None,
        augment: bool,
        flip: bool,
        seed: int,
    ) -> None:
        self.source = source
        self.names = names
        self.labels = labels
        self.crop = crop
        self.augment = augment
        self.flip = flip
        self.seed = seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: AnyKey) -> Item:
        """Return one item: ``real`` channels first, ``name``, and ``label``, a class, where there are any."""
        batch = self.__getitems__([epoch_and_index(key)])
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, keys: Sequence[AnyKey]) -> Item:
        """Return the batch of ``keys``; PyTorch's loader calls this instead of fetching item by item."""
        views: list[Array] = []
        indices = []
        for key in keys:
            epoch, index = epoch_and_index(key)
            uniforms = item_rng(self.seed, epoch, index).random(3).tolist() if self.augment else None
            views += cut(fetch(self.source, index), self.crop, uniforms, self.flip)
            indices.append(index)
        batch: Item = {"real": _stack(views), "name": [self.names[index] for index in indices]}
        if self.labels is not None:
            batch["label"] = torch.tensor([self.labels[index] for index in indices])
        return batch


def cut(
    pictures: Pictures, crop: HeightWidth | None, uniforms: Sequence[float] | None, flip: bool
) -> list[Array]:
    """Return the same window of equally large pictures, as views.

    Args:
        pictures: Channels first; label maps have no channels.
        crop: (height, width) of the window, or None for all.
        uniforms: Three numbers in [0, 1): row and column of the window, and whether it is mirrored; None
            takes the middle as it is.
        flip: Whether the third may mirror at all.
    """
    place = None if uniforms is None else (uniforms[0], uniforms[1])
    top, left, height, width = window(pictures[0].shape[-2:], crop, place)
    views = [picture[..., top : top + height, left : left + width] for picture in pictures]
    return [_mirror(view) for view in views] if uniforms and flip and uniforms[2] > 0.5 else views


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
