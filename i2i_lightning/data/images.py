"""One set of pictures, with classes or without: the data of methods that make images from noise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from i2i_lightning.data.checks import FileProblem, check_choice, first_names, raise_problems, require_folder
from i2i_lightning.data.dataset import FileImages, ImagesDataset, PictureSource
from i2i_lightning.data.decode import EXTENSIONS, SideFormat
from i2i_lightning.data.files import FileDataModule, dtypes, in_memory, picture_to_network
from i2i_lightning.data.module import Item
from i2i_lightning.data.pairs import SPLITS, content_of, hold_out, list_images, name_below
from i2i_lightning.data.transforms import Geometry
from i2i_lightning.types import ImageBatch, Size, UserError

LABELS = ("none", "folders")
LEAST_TO_TRAIN = 2
"""Pictures that training takes: a discriminator that has seen a single one knows it by heart."""


@dataclass(frozen=True)
class ImageFiles:
    """The files of one split.

    Args:
        names: Each file's path without suffix, below the split's folder.
        paths: The files.
    """

    names: list[str]
    paths: list[Path]


@dataclass
class FoundImages:
    """The files of every split.

    Args:
        where: The config key and value that say where they were looked for.
        splits: The files of ``train``, ``val`` and ``test``. ``val`` and ``test`` may be the same.
        notes: What was decided for want of a split, by the split it concerns, to be said aloud.
    """

    where: str
    splits: dict[str, ImageFiles]
    notes: dict[str, str] = field(default_factory=dict)


def find_images(root: str | os.PathLike[str] | None, val_fraction: float = 0.1) -> FoundImages:
    """Find the pictures of all splits.

    Args:
        root: A folder with the pictures, or with ``train`` and perhaps ``val`` and ``test``; folders below
            are walked through.
        val_fraction: Without any ``val`` or ``test``: this share is taken out of the training.

    Raises:
        UserError: If the folder is missing, or a split has too few pictures.
    """
    if root is None:
        raise UserError("data.root is missing: say where the images are (data.root=/path/to/the/images)")
    folder = Path(root).expanduser()
    require_folder("data.root", folder)
    has_splits = (folder / "train").is_dir()
    folders = {split: folder / split for split in SPLITS} if has_splits else {"train": folder}
    found = FoundImages(f"data.root={root}", {})
    for split, path in folders.items():
        if not path.is_dir():
            continue
        paths = list_images(path)
        if not paths:
            there = f"; it holds {content_of(path)}" if split == "train" else ""
            where = f" in {split}" if has_splits else ""
            raise UserError(f"{found.where}: no images{where} (readable are {', '.join(EXTENSIONS)}){there}")
        found.splits[split] = ImageFiles([name_below(path, file) for file in paths], paths)
    _complete_splits(found, val_fraction)
    return found


def _complete_splits(found: FoundImages, val_fraction: float) -> None:
    """Let every split exist: ``val`` and ``test`` stand in for each other, or are held out of ``train``."""
    splits = found.splits
    count = len(splits["train"].paths)
    alone = "val" not in splits and "test" not in splits
    if count < LEAST_TO_TRAIN + alone:
        raise UserError(
            f"{found.where}: {count} training images are too few; give at least {LEAST_TO_TRAIN + alone}"
            + (", one of which validates" if alone else "")
        )
    if alone:
        train = splits["train"]
        parts = hold_out(list(zip(train.names, train.paths, strict=True)), val_fraction)
        splits["train"], held = (ImageFiles(*map(list, zip(*part, strict=True))) for part in parts)
        splits["val"] = splits["test"] = held
        found.notes["train"] = (
            f"{found.where} has neither val nor test: {len(held.paths)} of {count} images are held out of "
            "the training for validation (data.val_fraction)"
        )
    elif "val" not in splits:
        splits["val"] = splits["test"]
        found.notes["val"] = f"{found.where} has no val: validating on test ({_count(splits['val'])})"
    elif "test" not in splits:
        splits["test"] = splits["val"]
        found.notes["test"] = f"{found.where} has no test: testing on val ({_count(splits['test'])})"


def _count(files: ImageFiles) -> str:
    return f"{len(files.paths)} images"


def find_classes(found: FoundImages) -> tuple[str, ...]:
    """Return the classes: the names of the folders directly below the splits, sorted.

    Raises:
        UserError: If pictures lie in no such folder, or there are held-out ones of a class that trains none.
    """
    classes = {split: {_class_of(name) for name in files.names} for split, files in found.splits.items()}
    for split, files in found.splits.items():
        stray = [name for name in files.names if _class_of(name) is None]
        if stray:
            raise UserError(
                f"{found.where}: data.labels=folders, and {split} has images in no folder: "
                f"{first_names(stray)}"
            )
        more = sorted(str(name) for name in classes[split] - classes["train"])
        if more:
            raise UserError(f"{found.where}: {split} has classes that train has not: {first_names(more)}")
    return tuple(sorted(str(name) for name in classes["train"]))


def _class_of(name: str) -> str | None:
    folder, slash, _ = name.partition("/")
    return folder if slash else None


class ImageFolderDataModule(FileDataModule):
    """One set of pictures of one domain, decoded once.

    :meth:`setup` checks every file before anything is trained and reports all that it finds in one error. An
    epoch walks through the pictures in a random order.

    Args:
        root: The folder; see :func:`find_images`.
        labels: ``folders``: the folders directly below that of a split are classes; ``none``: there are none.
        label_dim: The number of classes, which folders must agree with; 0 without.
        channels: The channels of a picture. Files must agree with it.
        preprocess: How pictures come to their size; see :class:`~i2i_lightning.data.transforms.Geometry`.
        load_px: The size to resize to in training, before the random crop; None is ``crop_px``.
        crop_px: The size of the window, a side or [height, width].
        flip: Mirror half of the training pictures left to right.
        convert: ``none``, or ``match`` to convert 8-bit files to the configured one or three channels with
            PIL.
        val_fraction: The share held out of the training where there is neither ``val`` nor ``test``.
        cache: Where decoded pixels are kept: ``memory``, ``disk`` (memory-mapped), or ``none``.
        cache_dir: The folder of disk caches; None is the user's cache folder.
        batch_size: Training pictures per rank and step.
        val_batch_size: Validation and test pictures per rank and step.
        num_workers: Worker processes; None is 0 with the memory cache and at most 4 otherwise.
        seed: The data seed.

    Attributes:
        classes: Names of the classes, in the order of the labels; empty before :meth:`setup`, or without.

    Raises:
        UserError: If an option is impossible; in :meth:`setup`, if a file is.
    """

    aligned = False
    one_sided = True

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        labels: str = "none",
        label_dim: int = 0,
        channels: int = 3,
        preprocess: str = "scale_shortest",
        load_px: Size | None = None,
        crop_px: Size = 256,
        flip: bool = True,
        convert: str = "none",
        val_fraction: float = 0.1,
        cache: str = "memory",
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 1,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= channels <= 65536:
            raise UserError(f"data.channels={channels}: must be at least 1")
        super().__init__(
            in_kind="image",
            out_kind="image",
            in_channels=channels,
            out_channels=channels,
            geometry=Geometry(preprocess, load_px, crop_px),
            flip=flip,
            convert=convert,
            cache=cache,
            cache_dir=cache_dir,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        # There is one side: what the base says of inputs and outputs is said of the same images.
        self.input = self.output = SideFormat("", "image", channels, convert)
        check_choice("data.labels", labels, LABELS)
        if (labels == "folders") != (label_dim > 0) or label_dim < 0:
            raise UserError(
                f"data.label_dim={label_dim} with data.labels={labels}: give the number of class folders "
                "with data.labels=folders, 0 with none"
            )
        self.root = root
        self.labels = labels
        self.label_dim = label_dim
        self.channels = channels
        self.val_fraction = val_fraction
        self.classes: tuple[str, ...] = ()

    def setup(self, stage: str | None = None) -> None:
        """Check and decode the splits that ``stage`` needs, unless that was done before.

        Raises:
            UserError: If pictures are missing, unreadable or not as configured, or the classes are others.
        """
        needed = self.wanted_splits(stage)
        if not needed:
            return
        found = find_images(self.root, self.val_fraction)
        for split in needed:
            if split in found.notes:
                rank_zero_info(found.notes[split])
        if self.labels == "folders":
            self.classes = find_classes(found)
            if len(self.classes) != self.label_dim:
                raise UserError(
                    f"data.label_dim={self.label_dim}: {found.where} has {len(self.classes)} class folders "
                    f"({first_names(self.classes)})"
                )
        assert self.root is not None  # else there is nothing to be found
        root = Path(self.root).expanduser()
        sources: dict[str, PictureSource] = {}
        problems: list[FileProblem] = []
        for split in needed:
            if split == "test" and "val" in sources and found.splits["test"] is found.splits["val"]:
                sources[split] = sources["val"]
                continue
            files = FileImages(found.splits[split].paths, self.output, self.geometry, split == "train", root)
            sources[split], more = self.keep(files, f"{root.resolve().stem}-{split}", split)
            problems += more
        raise_problems(found.where, problems)
        for split, source in sources.items():
            names = found.splits[split].names
            training = split == "train"
            sizes = self.check_batches(source, split)
            if training and len(sizes) == 1:
                (self.size_px,) = sizes
            if training:
                self.check_enough(found.where, "images", len(names))
            flip = self.flip and training
            labels = self._labels(names)
            dataset = ImagesDataset(source, names, labels, self.geometry.crop, training, flip, self.seed)
            setattr(self, f"{split}_set", dataset)
        self.cache_in_memory = all(map(in_memory, sources.values()))
        first = needed[0]
        self.note_formats(self.output, found.splits[first].paths[0], dtypes(sources[first])[0])

    def _labels(self, names: Sequence[str]) -> list[int] | None:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[str(_class_of(name))] for name in names] if numbers else None

    def to_network(self, batch: Item) -> ImageBatch:
        """Return images as floats in [-1, 1] and labels one-hot, on the device the batch is on."""
        return images_to_network(batch, picture_to_network(batch["real"], self.output), self.label_dim)


def images_to_network(batch: Mapping[str, object], real: Tensor, label_dim: int) -> ImageBatch:
    """Return a batch of ``real`` images with the names of ``batch``, and its classes one-hot.

    Args:
        batch: ``name``, and ``label``, long ``(N,)``, where there are classes.
        real: Float ``(N, C, H, W)``.
        label_dim: The number of classes.
    """
    names, label = batch["name"], batch.get("label")
    assert isinstance(names, list)
    network_batch: ImageBatch = {"real": real, "name": names}
    if isinstance(label, Tensor):
        network_batch["label"] = F.one_hot(label.long(), label_dim).float()
    return network_batch
