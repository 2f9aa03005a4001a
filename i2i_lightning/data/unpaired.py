"""Two sets of pictures without pairs: the data of CycleGAN and its kin."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from i2i_lightning.data.checks import FileProblem, check_choice, raise_problems
from i2i_lightning.data.dataset import FileImages, PictureSource, UnpairedDataset
from i2i_lightning.data.files import FileDataModule, dtypes, in_memory, picture_to_network
from i2i_lightning.data.module import Item
from i2i_lightning.data.sides import find_sides
from i2i_lightning.data.transforms import Geometry
from i2i_lightning.types import Size, UnpairedBatch

EPOCHS = ("longer", "a", "b")


class UnpairedDataModule(FileDataModule):
    """Two sets of pictures, of different sizes and without pairs, decoded once.

    :meth:`setup` checks every file before anything is trained and reports all that it finds in one error. An
    epoch of the training walks through one set in a random order; the partner of each picture is drawn from
    the other set, and the two are cut and mirrored independently. Who meets whom in an epoch is a function of
    the data seed alone, whatever the number of workers and processes, however often a run was stopped. (The
    reference walks through A even where B is longer, and so may miss some of B in an epoch.) Validation walks
    through both in order, the shorter set again and again.

    Args:
        root: The data set's folder with trainA and trainB; see :func:`~i2i_lightning.data.sides.find_sides`.
        folder_a: Side A instead of ``root``: a folder, or a list of files ``.txt``.
        folder_b: Side B.
        epoch: What an epoch of the training walks through: ``a``, ``b``, or the ``longer`` of them.
        in_kind: ``image``, or ``labels`` for label maps that become one-hot: side A.
        out_kind: The same for side B.
        in_channels: The channels of A, or its number of classes. Files must agree with it.
        out_channels: The same for B.
        preprocess: How pictures come to their size; see :class:`~i2i_lightning.data.transforms.Geometry`.
        load_px: The size to resize to in training, before the random crop; None is ``crop_px``.
        crop_px: The size of the window, a side or [height, width]; None takes the whole picture.
        multiple_px: What ``preprocess="none"`` rounds the sides to.
        flip: Mirror half of the training pictures left to right.
        convert: ``none``, or ``match`` to convert 8-bit files to the configured one or three channels with
            PIL.
        val_fraction: The share of each side held out of the training where there is neither ``val`` nor
            ``test``.
        cache: Where decoded pixels are kept: ``memory``, ``disk`` (memory-mapped), or ``none``.
        cache_dir: The folder of disk caches; None is the user's cache folder.
        batch_size: Training pictures of each side per rank and step.
        val_batch_size: Validation and test pictures of each side per rank and step.
        num_workers: Worker processes; None is 0 with the memory cache and at most 4 otherwise.
        seed: The data seed.

    Raises:
        UserError: If an option is impossible; in :meth:`setup`, if a file is.
    """

    aligned = False

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        folder_a: str | os.PathLike[str] | None = None,
        folder_b: str | os.PathLike[str] | None = None,
        epoch: str = "longer",
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
        val_fraction: float = 0.1,
        cache: str = "memory",
        cache_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 1,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            in_kind=in_kind,
            out_kind=out_kind,
            in_channels=in_channels,
            out_channels=out_channels,
            geometry=Geometry(preprocess, load_px, crop_px, multiple_px),
            flip=flip,
            convert=convert,
            cache=cache,
            cache_dir=cache_dir,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        check_choice("data.epoch", epoch, EPOCHS)
        self.root = root
        self.folder_a = folder_a
        self.folder_b = folder_b
        self.epoch = epoch
        self.val_fraction = val_fraction

    def setup(self, stage: str | None = None) -> None:
        """Check and decode the splits that ``stage`` needs, unless that was done before.

        Raises:
            UserError: If a side is missing, empty, too small or given twice, or files are unreadable or not
                as configured.
        """
        needed = self.wanted_splits(stage)
        if not needed:
            return
        found = find_sides(self.root, self.folder_a, self.folder_b, self.val_fraction)
        for split in needed:
            if split in found.notes:
                rank_zero_info(found.notes[split])
        root = None if self.root is None else Path(self.root).expanduser()
        slug = Path(self.root if self.root is not None else self.folder_a or "").expanduser().resolve().stem
        sources: dict[str, tuple[PictureSource, PictureSource]] = {}
        problems: list[FileProblem] = []
        for split in needed:
            sides = found.splits[split]
            if split == "test" and "val" in sources and sides is found.splits["val"]:
                sources[split] = sources["val"]
                continue
            kept = []
            for side, what in zip(sides, (self.input, self.output), strict=True):
                files = FileImages(side.paths, what, self.geometry, split == "train", root)
                source, more = self.keep(files, f"{slug}-{side.label}", side.label)
                kept.append(source)
                problems += more
            sources[split] = kept[0], kept[1]
        raise_problems(found.where, problems)
        for split, (a, b) in sources.items():
            training = split == "train"
            sizes = self.check_batches(a, split) | self.check_batches(b, split)
            if training and len(sizes) == 1:
                (self.size_px,) = sizes
            names = found.splits[split][0].names, found.splits[split][1].names
            flip, epoch = self.flip and training, self.epoch if training else "longer"
            dataset = UnpairedDataset((a, b), names, self.geometry.crop, training, flip, epoch, self.seed)
            if training:
                self.check_enough(found.where, "images", len(dataset))
            setattr(self, f"{split}_set", dataset)
        self.cache_in_memory = all(in_memory(source) for pair in sources.values() for source in pair)
        for what, side, source in zip(
            (self.input, self.output), found.splits[needed[0]], sources[needed[0]], strict=True
        ):
            self.note_formats(what, side.paths[0], dtypes(source)[0])

    def to_network(self, batch: Item) -> UnpairedBatch:
        """Return images as floats in [-1, 1] and label maps one-hot, on the device the batch is on."""
        network_batch: UnpairedBatch = {
            "real_a": picture_to_network(batch["real_a"], self.input),
            "real_b": picture_to_network(batch["real_b"], self.output),
            "name_a": batch["name_a"],
            "name_b": batch["name_b"],
        }
        if "first_a" in batch:
            network_batch["first_a"], network_batch["first_b"] = batch["first_a"], batch["first_b"]
        return network_batch
