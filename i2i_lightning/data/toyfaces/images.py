"""ToyFaces as one set of pictures, with classes or without: for methods that make images from noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from i2i_lightning.data.cache import Pictures
from i2i_lightning.data.dataset import ImagesDataset
from i2i_lightning.data.display import images_to_rgb
from i2i_lightning.data.images import images_to_network
from i2i_lightning.data.module import ImageDataModule, Item, available_cores
from i2i_lightning.data.toyfaces.crew import draw_together
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.labels import class_of, num_classes
from i2i_lightning.data.toyfaces.module import draw_all, with_bar
from i2i_lightning.data.toyfaces.render import ByteArray, render
from i2i_lightning.data.transforms import scale_to_network
from i2i_lightning.types import ImageBatch, UserError

DRAWINGS = ("photo", "cartoon", "regions", "palette")
"""What can be drawn of a face in red, green and blue."""
WORTH_A_CREW = 64_000
"""Faces times their side in pixels from which several processes draw: about five seconds of one core."""


class ToyFacesPictures:
    """One drawing of every face of a split, drawn at construction.

    Args:
        faces: Which faces.
        kind: What is drawn of them.

    Attributes:
        names: The faces' names.
    """

    def __init__(self, faces: ToyFaces, kind: str) -> None:
        self.names = [faces.name(index) for index in range(len(faces))]
        self._pictures: npt.NDArray[np.uint8] = np.empty(
            (len(faces), 3, faces.size_px, faces.size_px), np.uint8
        )

        def draw(index: int) -> ByteArray:
            return render(faces.parameters(index), faces.size_px, (kind,))[kind]

        cores = available_cores()
        together = cores > 1 and len(faces) * faces.size_px >= WORTH_A_CREW
        drawn = with_bar(draw_together(faces, kind, cores), faces) if together else draw_all(faces, draw)
        for index, picture in enumerate(drawn):
            self._pictures[index] = picture

    def __getitem__(self, index: int) -> Pictures:
        """Return the picture of face ``index``, uint8 ``(3, H, W)``."""
        return (self._pictures[index],)


class ToyFacesImagesDataModule(ImageDataModule):
    """The embedded data set as pictures of one kind, for methods without an input side.

    Args:
        kind: What is drawn of each face: ``photo``, ``cartoon``, ``regions`` or ``palette``.
        crop_px: Side of the square pictures. Nothing is cropped: the key is the one by which networks learn
            the size.
        num_train: Training faces; more than 4000 is fine.
        num_val: Validation faces.
        num_test: Test faces.
        flip: Mirror training pictures at random.
        label: What the faces are told apart by, one of :data:`~i2i_lightning.data.toyfaces.labels.CLASSES`:
            ``hair_style``, ``glasses``, ``smiling`` ...; None gives no labels.
        label_dim: None, or the number of classes that ``label`` has; a configuration states it for the
            networks.
        version: Version of the distribution.
        batch_size: Training pictures per step.
        val_batch_size: Validation and test pictures per step.
        num_workers: Worker processes; None takes 0, because the pictures are in memory.
        seed: The data seed: order and flips. The faces themselves do not depend on it.

    Raises:
        UserError: If an argument is impossible.
    """

    aligned = False
    one_sided = True

    def __init__(
        self,
        kind: str = "photo",
        crop_px: int = 64,
        num_train: int = 4000,
        num_val: int = 200,
        num_test: int = 200,
        flip: bool = True,
        label: str | None = None,
        label_dim: int | None = None,
        version: int = 1,
        batch_size: int = 1,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, seed)
        if kind not in DRAWINGS:
            raise UserError(f"data.kind={kind}: choose one of {', '.join(DRAWINGS)}")
        if not isinstance(crop_px, int) or not 16 <= crop_px <= 2048:
            raise UserError(f"data.crop_px={crop_px}: toy faces are square; give one side of 16 to 2048 px")
        for key, value in (("num_train", num_train), ("num_val", num_val), ("num_test", num_test)):
            if value < 1:
                raise UserError(f"data.{key}={value}: give at least 1 face")
        self.label = label
        self.label_dim = num_classes(label)
        if label_dim is not None and label_dim != self.label_dim:
            raise UserError(
                f"data.label_dim={label_dim}: data.label={'null' if label is None else label} has "
                f"{self.label_dim} classes"
            )
        self.kind = kind
        self.channels = self.in_channels = self.out_channels = 3
        self.size_px = (crop_px, crop_px)
        self.flip = flip
        self.cache_in_memory = True
        self.faces = {
            split: ToyFaces(split, crop_px, (), size, version)
            for split, size in (("train", num_train), ("val", num_val), ("test", num_test))
        }

    @property
    def num_train_images(self) -> int:
        """The number of training pictures, known before they are drawn."""
        return len(self.faces["train"])

    def setup(self, stage: str | None = None) -> None:
        """Draw the splits of a stage, each once."""
        if stage in (None, "fit") and self.train_set is None:
            self.train_set = self._drawn("train")
        if stage in (None, "fit", "validate") and self.val_set is None:
            self.val_set = self._drawn("val")
        if stage in (None, "test", "predict") and self.test_set is None:
            self.test_set = self._drawn("test")

    def _drawn(self, split: str) -> ImagesDataset:
        faces, training = self.faces[split], split == "train"
        pictures = ToyFacesPictures(faces, self.kind)
        labels = None
        if self.label is not None:
            labels = [class_of(faces.parameters(index), self.label) for index in range(len(faces))]
        return ImagesDataset(
            pictures, pictures.names, labels, None, training, self.flip and training, self.seed
        )

    def to_network(self, batch: Item) -> ImageBatch:
        """Return pictures as floats in [-1, 1] and labels one-hot, on the batch's device."""
        return images_to_network(batch, scale_to_network(batch["real"]), self.label_dim)

    def judged_style(self, direction: str = "ab") -> str | None:
        """Return the style, photo or cartoon, that the judge should see in a picture; None for neither."""
        return self.kind if self.kind in ("photo", "cartoon") else None

    def display_input(self, real_a: Tensor) -> Tensor:
        """Return pictures as RGB, uint8 ``(N, 3, H, W)``."""
        return images_to_rgb(real_a)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return pictures as RGB, uint8 ``(N, 3, H, W)``."""
        return images_to_rgb(b)
