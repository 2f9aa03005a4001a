"""ToyFaces without pairs: two styles of different faces, and hidden partners that only scoring may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.data.cache import Pictures
from i2i_lightning.data.dataset import UnpairedDataset
from i2i_lightning.data.decode import SideFormat
from i2i_lightning.data.display import images_to_rgb, labels_to_rgb
from i2i_lightning.data.files import picture_to_network
from i2i_lightning.data.module import ImageDataModule, Item
from i2i_lightning.data.sampler import AnyKey, epoch_and_index
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.geometry import CLASS_PALETTE, landmarks
from i2i_lightning.data.toyfaces.module import class_palette, draw_all, drawings, side
from i2i_lightning.data.toyfaces.parameters import vector
from i2i_lightning.data.toyfaces.render import render
from i2i_lightning.data.toyfaces.tasks import TASKS
from i2i_lightning.types import ImageFormat, UnpairedBatch, UserError

_UNPAIRED = [name for name, task in TASKS.items() if "lab" not in (task.a, task.b)]


class ToyFacesSide:
    """One side of one split, drawn at construction.

    Args:
        faces: Which faces.
        kind: What is drawn of them.
        partner: What is drawn of the same faces for the eyes of scoring alone; None draws no truth.

    Attributes:
        names: The faces' names.
        truth: ``partner``, ``parsing``, ``landmarks`` and ``parameters`` of every face; empty in training.
    """

    def __init__(self, faces: ToyFaces, kind: str, partner: str | None = None) -> None:
        self.names = [faces.name(index) for index in range(len(faces))]
        kinds = drawings((kind,) if partner is None else (kind, partner, "parsing"))

        def draw(index: int) -> dict[str, Any]:
            face = faces.parameters(index)
            drawn: dict[str, Any] = dict(render(face, faces.size_px, kinds))
            if partner is None:
                return {"picture": side(kind, drawn)}
            return {
                "picture": side(kind, drawn),
                "partner": side(partner, drawn),
                "parsing": drawn["parsing"],
                "landmarks": landmarks(face),
                "parameters": vector(face),
            }

        drawn = list(draw_all(faces, draw))
        self._pictures = np.stack([face.pop("picture") for face in drawn])
        self.truth = {name: np.stack([face[name] for face in drawn]) for name in drawn[0]}

    def __getitem__(self, index: int) -> Pictures:
        """Return the picture of face ``index``, uint8, channels first; a label map has no channels."""
        return (self._pictures[index],)


class ToyFacesUnpaired(UnpairedDataset):
    """Two sides, and beside each item of a held-out split the truth of either: ``partner_a`` and so on."""

    def __init__(
        self, a: ToyFacesSide, b: ToyFacesSide, augment: bool, flip: bool, epoch: str, seed: int
    ) -> None:
        super().__init__((a, b), (a.names, b.names), None, augment, flip, epoch, seed)
        self.sides = a, b

    def __getitems__(self, keys: Sequence[AnyKey]) -> Item:
        """Return the batch of ``keys``."""
        batch = super().__getitems__(keys)
        pairs = [self.partners(*epoch_and_index(key))[0] for key in keys]
        for which, letter in enumerate("ab"):
            for name, values in self.sides[which].truth.items():
                batch[f"{name}_{letter}"] = torch.from_numpy(values[[pair[which] for pair in pairs]])
        return batch


class ToyFacesUnpairedDataModule(ImageDataModule):
    """The embedded data set as two sets without pairs, for one task of the paired one.

    No face of side a is a face of side b, so that there are no pairs to be found in the training. The faces
    of validation and test differ on the two sides as well, but batches carry the truth of each: what the face
    looks like on the other side (``partner_a`` is in b), its parsing, landmarks and parameters. It is there
    for scoring and must not be trained on.

    Args:
        task: One of :data:`~i2i_lightning.data.toyfaces.tasks.TASKS`, save the one whose sides need each
            other (``grey_to_colour_lab``).
        crop_px: Side of the square pictures. Nothing is cropped: the key is the one by which networks learn
            the size.
        num_train_a: Training faces of side a.
        num_train_b: Training faces of side b, all others.
        num_val: Validation faces of each side.
        num_test: Test faces of each side.
        epoch: What an epoch walks through: ``a``, ``b``, or the ``longer`` of them.
        flip: Mirror training pictures at random.
        version: Version of the distribution.
        in_channels: None, or what side a has; a configuration states it for the networks.
        out_channels: As ``in_channels``, for side b.
        batch_size: Training pictures of each side per step.
        val_batch_size: Validation and test pictures of each side per step.
        num_workers: Worker processes; None takes 0, because the pictures are in memory.
        seed: The data seed: order, partners and flips. The faces themselves do not depend on it.

    Raises:
        UserError: If an argument is impossible.
    """

    aligned = False

    def __init__(
        self,
        task: str = "photo_to_cartoon",
        crop_px: int = 64,
        num_train_a: int = 2000,
        num_train_b: int = 2000,
        num_val: int = 100,
        num_test: int = 200,
        epoch: Literal["longer", "a", "b"] = "longer",
        flip: bool = True,
        version: int = 1,
        in_channels: int | None = None,
        out_channels: int | None = None,
        batch_size: int = 1,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, seed)
        if task not in _UNPAIRED:
            raise UserError(f"data.task={task}: without pairs, choose one of {', '.join(_UNPAIRED)}")
        if not isinstance(crop_px, int) or not 16 <= crop_px <= 2048:
            raise UserError(f"data.crop_px={crop_px}: toy faces are square; give one side of 16 to 2048 px")
        sizes = {"num_train_a": num_train_a, "num_train_b": num_train_b}
        for key, value in (sizes | {"num_val": num_val, "num_test": num_test}).items():
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
        self.input = SideFormat("in", self.table.in_kind, self.in_channels)
        self.output = SideFormat("out", self.table.out_kind, self.out_channels)
        self.size_px = (crop_px, crop_px)
        self.epoch = epoch
        self.flip = flip
        self.cache_in_memory = True
        self.faces = {
            split: (
                ToyFaces(split, crop_px, (), size_a, version),
                ToyFaces(split, crop_px, (), size_b, version, first=size_a),
            )
            for split, size_a, size_b in (
                ("train", num_train_a, num_train_b),
                ("val", num_val, num_val),
                ("test", num_test, num_test),
            )
        }

    @property
    def num_train_images(self) -> int:
        """The number of items of an epoch, known before they are drawn."""
        a, b = (len(faces) for faces in self.faces["train"])
        return {"a": a, "b": b, "longer": max(a, b)}[self.epoch]

    def setup(self, stage: str | None = None) -> None:
        """Draw the splits of a stage, each once."""
        if stage in (None, "fit") and self.train_set is None:
            a, b = self.faces["train"]
            sides = ToyFacesSide(a, self.table.a), ToyFacesSide(b, self.table.b)
            self.train_set = ToyFacesUnpaired(*sides, True, self.flip, self.epoch, self.seed)
        if stage in (None, "fit", "validate") and self.val_set is None:
            self.val_set = self._held_out("val")
        if stage in (None, "test", "predict") and self.test_set is None:
            self.test_set = self._held_out("test")

    def _held_out(self, split: str) -> ToyFacesUnpaired:
        a, b = self.faces[split]
        sides = ToyFacesSide(a, self.table.a, self.table.b), ToyFacesSide(b, self.table.b, self.table.a)
        return ToyFacesUnpaired(*sides, False, False, "longer", self.seed)

    def formats(self) -> tuple[ImageFormat, ImageFormat]:
        """Return what the two sides are."""
        return self._format(self.input), self._format(self.output)

    @staticmethod
    def _format(side: SideFormat) -> ImageFormat:
        if side.kind == "labels":
            return ImageFormat("labels", side.channels, palette=CLASS_PALETTE)
        return ImageFormat("image", side.channels)

    def to_network(self, batch: Item) -> UnpairedBatch:
        """Return images as floats in [-1, 1] and label maps one-hot, on the batch's device; and the truth."""
        formats = {"a": self.input, "b": self.output}
        network_batch: dict[str, Any] = dict(batch)
        for letter, other in ("ab", "ba"):
            network_batch[f"real_{letter}"] = picture_to_network(batch[f"real_{letter}"], formats[letter])
            if f"partner_{letter}" in batch:
                partner = batch[f"partner_{letter}"]
                network_batch[f"partner_{letter}"] = picture_to_network(partner, formats[other])
                network_batch[f"parsing_{letter}"] = batch[f"parsing_{letter}"].long()
        return network_batch  # type: ignore[return-value]

    def judged_style(self, direction: str = "ab") -> str | None:
        """Return the style, photo or cartoon, that the judge should see in an output; None for neither."""
        kind = self.table.b if direction == "ab" else self.table.a
        return kind if kind in ("photo", "cartoon") else None

    def display_input(self, real_a: Tensor) -> Tensor:
        """Return pictures of side a as RGB, uint8 ``(N, 3, H, W)``; label maps in the fixed palette."""
        return _display(real_a, self.input)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return pictures of side b as RGB, uint8 ``(N, 3, H, W)``."""
        return _display(b, self.output)


def _display(pictures: Tensor, side: SideFormat) -> Tensor:
    return labels_to_rgb(pictures, class_palette()) if side.kind == "labels" else images_to_rgb(pictures)
