"""ToyFaces as a LightningDataModule: one paired task, drawn once, kept in memory as uint8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from i2i_lightning.data.color import (
    CHROMA_SCALE,
    LIGHTNESS_SCALE,
    lightness_and_chroma_to_rgb,
    rgb_to_lab,
)
from i2i_lightning.data.display import images_to_rgb, labels_to_rgb
from i2i_lightning.data.module import ImageDataModule, Item, available_cores
from i2i_lightning.data.sampler import AnyKey, epoch_and_index, item_rng
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, CLASS_PALETTE, landmarks
from i2i_lightning.data.toyfaces.parameters import vector
from i2i_lightning.data.toyfaces.render import KINDS, ByteArray, render
from i2i_lightning.data.toyfaces.tasks import TASKS
from i2i_lightning.types import ImageFormat, PairedBatch, UserError

T = TypeVar("T")

LOW_FACTOR = 4
"""How many times smaller the low-resolution input of ``low_to_high`` was."""


def _from_photo(kind: str, photo: ByteArray) -> ByteArray:
    """Make a side that is derived from the photo ``(3, H, W)``: ``grey``, ``low`` or ``lab``."""
    if kind == "lab":
        return photo  # Becomes L and ab as floats, on the device.
    picture = Image.fromarray(np.ascontiguousarray(photo.transpose(1, 2, 0)))
    if kind == "grey":
        return np.asarray(picture.convert("L"))[None]
    small = (max(1, picture.width // LOW_FACTOR), max(1, picture.height // LOW_FACTOR))
    blurred = picture.resize(small, Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(blurred).transpose(2, 0, 1))


def drawings(kinds: Iterable[str]) -> list[str]:
    """Return what has to be drawn for sides of these kinds."""
    return sorted({kind if kind in KINDS else "photo" for kind in kinds})


def side(kind: str, drawn: Mapping[str, Any]) -> ByteArray:
    """Return the side of a ``kind``, given the :func:`drawings` it needs."""
    picture: ByteArray = drawn[kind] if kind in KINDS else _from_photo(kind, drawn["photo"])
    return picture


def draw_all(faces: ToyFaces, draw: Callable[[int], T]) -> Iterator[T]:
    """Yield ``draw(index)`` for every face, behind a progress bar where that takes longer than a second."""
    # NumPy lets go of the interpreter only in large arrays: threads pay off from about 128 px.
    with ThreadPoolExecutor(available_cores() if faces.size_px >= 128 else 1) as pool:
        yield from with_bar(pool.map(draw, range(len(faces))), faces)


def with_bar(drawn: Iterable[T], faces: ToyFaces) -> Iterator[T]:
    """Yield what is drawn of ``faces`` behind a progress bar, where that takes longer than a second."""
    yield from tqdm(
        drawn,
        f"Drawing {len(faces)} {faces.split} faces at {faces.size_px} px",
        len(faces),
        leave=False,
        delay=1.0,
        unit="face",
        disable=None,
    )


class ToyFacesPairs:
    """The pairs of one split, drawn at construction.

    Args:
        faces: Which faces.
        task: Name of the task.
        flip: Mirror each training item with probability 1/2, as a pure function of ``(seed, epoch, index)``.
            Exact: no side of any task says left or right. Items then carry no truth, because the truth does.
        truth: Add ``parsing``, ``landmarks`` and ``parameters`` to every item.
        seed: The data seed.

    Attributes:
        class_colours: Mean target colour of each parsing class over the split, float64 ``(11, 3)`` in levels
            0 to 255; what a painter would use who knows the parsing and nothing else.
    """

    def __init__(
        self, faces: ToyFaces, task: str, flip: bool = False, truth: bool = False, seed: int = 0
    ) -> None:
        table = TASKS[task]
        self.names = [faces.name(index) for index in range(len(faces))]
        self.flip = flip
        self.seed = seed
        size = faces.size_px
        kinds = ["parsing", *drawings((table.a, table.b))]

        def sides(index: int) -> tuple[dict[str, Any], ByteArray, ByteArray]:
            face = faces.parameters(index)
            item: dict[str, Any] = dict(render(face, size, sorted(set(kinds))))
            if truth:
                item |= {"landmarks": landmarks(face), "parameters": vector(face)}
            return item, side(table.a, item), side(table.b, item)

        _, first_a, first_b = sides(0)
        self.a: npt.NDArray[np.uint8] = np.empty((len(faces), *first_a.shape), np.uint8)
        self.b: npt.NDArray[np.uint8] = np.empty((len(faces), *first_b.shape), np.uint8)
        self.truth: dict[str, list[Any]] = {"parsing": [], "landmarks": [], "parameters": []} if truth else {}
        sums, counts = np.zeros((3, len(CLASS_NAMES))), np.zeros(len(CLASS_NAMES))
        for index, (item, a, b) in enumerate(draw_all(faces, sides)):
            self.a[index], self.b[index] = a, b
            classes = item["parsing"].ravel()
            counts += np.bincount(classes, minlength=len(counts))
            for channel in range(3):
                sums[channel] += np.bincount(classes, b[channel].ravel(), len(counts))
            for name, values in self.truth.items():
                values.append(item[name])
        self.class_colours: npt.NDArray[np.float64] = (sums / np.maximum(counts, 1)).T

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: AnyKey) -> Item:
        epoch, index = epoch_and_index(key)
        a, b = torch.from_numpy(self.a[index]), torch.from_numpy(self.b[index])
        if self.flip and item_rng(self.seed, epoch, index).random() < 0.5:
            a, b = a.flip(-1), b.flip(-1)
        item: Item = {"real_a": a, "real_b": b, "name": self.names[index]}
        if self.truth:
            item["parsing"] = torch.from_numpy(self.truth["parsing"][index].astype(np.int64))
            item["landmarks"] = torch.from_numpy(self.truth["landmarks"][index])
            item["parameters"] = torch.from_numpy(self.truth["parameters"][index])
        return item


class ToyFacesDataModule(ImageDataModule):
    """The embedded data set for one paired task.

    Validation and test batches also carry the truth: ``parsing`` long ``(N, H, W)``, ``landmarks`` float
    ``(N, K, 2)`` in [0, 1] and ``parameters`` float ``(N, P)``; see ``geometry.LANDMARK_NAMES`` and
    ``parameters.VECTOR_NAMES``.

    Args:
        task: One of :data:`~i2i_lightning.data.toyfaces.tasks.TASKS`.
        crop_px: Side of the square pictures. Nothing is cropped: the key is the one by which networks learn
            the size.
        num_train: Training faces; more than 4000 is fine.
        num_val: Validation faces.
        num_test: Test faces.
        flip: Mirror training pairs at random.
        version: Version of the distribution.
        in_channels: None, or what the task has; a configuration states it for the networks.
        out_channels: As ``in_channels``, for the target.
        batch_size: Training pairs per step.
        val_batch_size: Validation and test pairs per step.
        num_workers: Worker processes; None takes 0, because the pictures are in memory.
        seed: The data seed: order and flips. The faces themselves do not depend on it.

    Raises:
        UserError: If an argument is impossible.
    """

    def __init__(
        self,
        task: str = "regions_to_photo",
        crop_px: int = 64,
        num_train: int = 4000,
        num_val: int = 200,
        num_test: int = 200,
        flip: bool = True,
        version: int = 1,
        in_channels: int | None = None,
        out_channels: int | None = None,
        batch_size: int = 1,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size, val_batch_size=val_batch_size, num_workers=num_workers, seed=seed
        )
        if task not in TASKS:
            raise UserError(f"data.task={task}: choose one of {', '.join(TASKS)}")
        if not isinstance(crop_px, int) or not 16 <= crop_px <= 2048:
            raise UserError(f"data.crop_px={crop_px}: toy faces are square; give one side of 16 to 2048 px")
        for key, value in (("num_train", num_train), ("num_val", num_val), ("num_test", num_test)):
            if value < 1:
                raise UserError(f"data.{key}={value}: give at least 1 face")
        self.task = task
        self.table = TASKS[task]
        for key, given, right in (
            ("in_channels", in_channels, self.table.in_channels),
            ("out_channels", out_channels, self.table.out_channels),
        ):
            if given is not None and given != right:
                raise UserError(f"data.{key}={given}: the task {task} has {right}")
        self.in_channels = self.table.in_channels
        self.out_channels = self.table.out_channels
        self.size_px = (crop_px, crop_px)
        self.flip = flip
        self.cache_in_memory = True
        self.faces = {
            split: ToyFaces(split, crop_px, (), size, version)
            for split, size in (("train", num_train), ("val", num_val), ("test", num_test))
        }

    @property
    def num_train_images(self) -> int:
        """The number of training pairs, known before they are drawn."""
        return len(self.faces["train"])

    def setup(self, stage: str | None = None) -> None:
        """Draw the splits of a stage, each once."""
        if stage in (None, "fit") and self.train_set is None:
            self.train_set = ToyFacesPairs(self.faces["train"], self.task, flip=self.flip, seed=self.seed)
        if stage in (None, "fit", "validate") and self.val_set is None:
            self.val_set = ToyFacesPairs(self.faces["val"], self.task, truth=True, seed=self.seed)
        if stage in (None, "test", "predict") and self.test_set is None:
            self.test_set = ToyFacesPairs(self.faces["test"], self.task, truth=True, seed=self.seed)

    def to_network(self, batch: Item) -> PairedBatch:
        """Return images as floats in [-1, 1] and label maps one-hot, on the batch's device; and the truth."""
        if self.table.b == "lab":
            lab = rgb_to_lab(batch["real_b"].float() / 255)
            real_a, real_b = lab[:, :1] / LIGHTNESS_SCALE - 1, lab[:, 1:] / CHROMA_SCALE
        else:
            real_a, real_b = (
                self._float(batch["real_a"], self.table.in_kind),
                self._float(batch["real_b"], self.table.out_kind),
            )
        network_batch: PairedBatch = {"real_a": real_a, "real_b": real_b, "name": batch["name"]}
        if "parsing" in batch:
            network_batch["parsing"] = batch["parsing"].long()
            network_batch["landmarks"] = batch["landmarks"]
            network_batch["parameters"] = batch["parameters"]
        return network_batch

    def formats(self) -> tuple[ImageFormat, ImageFormat]:
        """Return what inputs and outputs of the task are."""
        if self.table.b == "lab":
            return ImageFormat("lightness", 1), ImageFormat("chroma", 2)
        palette = CLASS_PALETTE if self.table.in_kind == "labels" else None
        return (
            ImageFormat("image" if palette is None else "labels", self.in_channels, palette=palette),
            ImageFormat("image", self.out_channels),
        )

    def judged_style(self, direction: str = "ab") -> str | None:
        """Return the style, photo or cartoon, that the judge should see in an output; None for neither."""
        kind = "photo" if self.table.b == "lab" else self.table.b
        return kind if kind in ("photo", "cartoon") else None

    def display_input(self, real_a: Tensor) -> Tensor:
        """Return inputs as RGB, uint8 ``(N, 3, H, W)``; label maps in the fixed palette."""
        if self.table.in_kind == "labels":
            return labels_to_rgb(real_a, class_palette())
        if self.table.a == "lab":
            return lightness_and_chroma_to_rgb(real_a, torch.zeros_like(real_a).expand(-1, 2, -1, -1))
        return images_to_rgb(real_a)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return outputs or targets as RGB, uint8 ``(N, 3, H, W)``; ab with the lightness of the input."""
        if self.table.b == "lab":
            return lightness_and_chroma_to_rgb(real_a, b)
        return images_to_rgb(b)

    @staticmethod
    def _float(values: Tensor, kind: str) -> Tensor:
        if kind == "labels":
            return F.one_hot(values.long(), len(CLASS_NAMES)).movedim(-1, 1).float()
        return values.float() / 127.5 - 1


def class_palette() -> Tensor:
    """Return the fixed palette of the parsing classes, uint8 ``(11, 3)``."""
    return torch.tensor(CLASS_PALETTE, dtype=torch.uint8)
