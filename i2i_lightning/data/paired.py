"""Aligned pairs from files: the data of pix2pix and its kin."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from i2i_lightning.data.checks import FileProblem, check_choice
from i2i_lightning.data.dataset import FilePairs, PairedDataset, PictureSource
from i2i_lightning.data.files import FileDataModule, dtypes, in_memory, picture_to_network
from i2i_lightning.data.module import Item
from i2i_lightning.data.pairs import LAYOUTS, find_pairs, report
from i2i_lightning.data.transforms import Geometry
from i2i_lightning.types import PairedBatch, Size

DIRECTIONS = ("a_to_b", "b_to_a")


class PairedDataModule(FileDataModule):
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
        for key, value, choices in (("layout", layout, LAYOUTS), ("direction", direction, DIRECTIONS)):
            check_choice(f"data.{key}", value, choices)
        self.root = root
        self.layout = layout
        self.direction = direction
        self.folder_a = folder_a
        self.folder_b = folder_b
        self.val_fraction = val_fraction

    @property
    def input_side(self) -> int:
        """0 if side A is the network's input, 1 if side B is."""
        return DIRECTIONS.index(self.direction)

    def setup(self, stage: str | None = None) -> None:
        """Check and decode the splits that ``stage`` needs, unless that was done before.

        Raises:
            UserError: If files are missing, unmatched, unreadable, not as configured, or too few.
        """
        needed = self.wanted_splits(stage)
        if not needed:
            return
        found = find_pairs(self.root, self.layout, self.folder_a, self.folder_b, self.val_fraction)
        for split in needed:
            if split in found.notes:
                rank_zero_info(found.notes[split])
        root = None if self.root is None else Path(self.root).expanduser()
        sides = (self.input, self.output) if self.input_side == 0 else (self.output, self.input)
        name = Path(self.root if self.root is not None else self.folder_a or "").expanduser().resolve().stem
        sources: dict[str, PictureSource] = {}
        problems: list[FileProblem] = []
        for split in needed:
            files, training = found.splits[split], split == "train"
            if split == "test" and "val" in sources and files is found.splits["val"]:
                sources[split] = sources["val"]
                continue
            loader = FilePairs(files, *sides, self.geometry, training, root)
            sources[split], more = self.keep(loader, f"{name}-{split}", split)
            problems += more
        report(found, needed, problems)
        if "train" in needed:
            self.check_enough(found.where, "pairs", len(found.splits["train"]))
        for split, source in sources.items():
            sizes = self.check_batches(source, split)
            names, training = [files.name for files in found.splits[split]], split == "train"
            if training and len(sizes) == 1:
                (self.size_px,) = sizes
            flip, crop = self.flip and training, self.geometry.crop
            dataset = PairedDataset(source, names, self.input_side, crop, training, flip, self.seed)
            setattr(self, f"{split}_set", dataset)
        self.cache_in_memory = all(map(in_memory, sources.values()))
        first = found.splits[needed[0]][0]
        paths = first.a, first.b or first.a
        for side, path, dtype in zip(sides, paths, dtypes(sources[needed[0]]), strict=True):
            self.note_formats(side, path, dtype)

    def to_network(self, batch: Item) -> PairedBatch:
        """Return images as floats in [-1, 1] and label maps one-hot, on the device the batch is on."""
        return {
            "real_a": picture_to_network(batch["real_a"], self.input),
            "real_b": picture_to_network(batch["real_b"], self.output),
            "name": batch["name"],
        }
