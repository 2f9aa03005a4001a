"""Images to be embedded: one chunk of them in an epoch, the same chunk in each of its batches."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from typing_extensions import NotRequired

from i2i_lightning.data.aligned_faces import AlignedFaces, find_faces
from i2i_lightning.data.checks import (
    FileProblem,
    check_choice,
    first_names,
    raise_problems,
    require_folder,
)
from i2i_lightning.data.dataset import FileImages, PictureSource, fetch
from i2i_lightning.data.decode import CONVERSIONS, EXTENSIONS, MASK, SideFormat, read_header
from i2i_lightning.data.display import images_to_rgb
from i2i_lightning.data.module import ImageDataModule, Item
from i2i_lightning.data.pairs import content_of, list_images, name_below
from i2i_lightning.data.sampler import AnyKey, EpochSampler, epoch_and_index
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesPictures
from i2i_lightning.data.transforms import Geometry, scale_to_network
from i2i_lightning.types import ImageBatch, UserError

FITS = ("refuse", "crop", "align")


class TargetBatch(ImageBatch):
    """Images to find latents for: ``mask`` is (N, 1, H, W) in [0, 1]; ``start`` are latent files."""

    mask: NotRequired[Tensor]
    start: NotRequired[list[str]]


class Chunks:
    """The images of one process, chunk after chunk: chunk ``e`` is every batch of epoch ``e``.

    Args:
        source: All images.
        names: Their names.
        plan: Names of the images of each chunk, those of all processes.
        size: Images that a process has of a chunk, at most.
        rank: Number of this one.
        shape: (channels, height, width) of an image.
        masks: Where each image counts, grey; None: everywhere.
        starts: A latent file for each image to begin with; None: there are none.
    """

    def __init__(
        self,
        source: PictureSource,
        names: Sequence[str],
        plan: Sequence[Sequence[str]],
        size: int,
        rank: int,
        shape: tuple[int, int, int],
        masks: PictureSource | None = None,
        starts: Sequence[Path] | None = None,
    ) -> None:
        self.source, self.names, self.plan, self.size = source, names, plan, size
        self.rank, self.shape = rank, shape
        self.masks, self.starts = masks, starts
        self._numbers = {name: number for number, name in enumerate(names)}
        self._decoded: tuple[int, Item] | None = None

    def indices(self, chunk: int) -> list[int]:
        """Return the numbers of the images of this process in ``chunk``; there may be none left for it."""
        mine = self.plan[chunk][self.rank * self.size : (self.rank + 1) * self.size]
        return [self._numbers[name] for name in mine]

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, keys: Sequence[AnyKey]) -> Item:
        """Return the chunk that ``keys`` are of, decoded once: uint8 or float ``(n, C, H, W)``."""
        chunk, _ = epoch_and_index(keys[0])
        if self._decoded is None or self._decoded[0] != chunk:
            indices = self.indices(chunk)
            item = {
                "real": _stacked(self.source, indices, self.shape),
                "name": [self.names[index] for index in indices],
            }
            if self.masks is not None:
                item["mask"] = _stacked(self.masks, indices, (1, *self.shape[1:]))
            if self.starts is not None:
                item["start"] = [str(self.starts[index]) for index in indices]
            self._decoded = chunk, item
        return dict(self._decoded[1])

    def __getitem__(self, key: AnyKey) -> Item:
        return self.__getitems__([key])


def _stacked(source: PictureSource, indices: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    pictures = [torch.as_tensor(fetch(source, index)[0]) for index in indices]
    if len({picture.dtype for picture in pictures}) > 1:  # files of several bit depths
        pictures = [scale_to_network(picture) for picture in pictures]
    return torch.stack(pictures) if pictures else torch.zeros(0, *shape, dtype=torch.uint8)


class TargetImages(ImageDataModule):
    """The images that an inversion is to find latents for, streamed in chunks.

    Every header is checked before anything is searched, and everything that is wrong is listed in one
    message; pictures are decoded chunk by chunk. Processes take their shares of a chunk, so that none has an
    image of another.

    A checkpoint holds which images each chunk has. A resumed run may have other images, more or less of them
    at once, or other processes: it goes on with exactly those images that were in no finished chunk, and the
    chunk that was half done goes on where it stood unless it would be another one now.

    Args:
        images: A file, a folder (all images below it), a quoted pattern, or a list of these; None takes
            photos of toy faces that no network here has been trained on.
        size_px: Side of the generator's images, to which other squares are resized; ``i2i-invert`` fills it
            in.
        channels: Channels of the generator's images, which files must agree with; filled in as well.
        fit: What becomes of an image that is not square: ``refuse``, or ``crop`` its middle. ``align`` cuts
            the face out of every image, as FFHQ does; all faces are found before anything is searched. Masks
            are cut as their images are.
        convert: ``none``, or ``match`` to convert 8-bit files to the generator's one or three channels.
        limit: Take the first so many images; None takes all.
        num_faces: Toy faces, where ``images`` is None.
        batch_size: Images of a chunk: those that are searched for together.
        num_workers: Worker processes; None takes 0, because a chunk is decoded once.
        seed: Does not matter here: nothing is drawn.
        label: Class of all images, where the generator has classes.
        label_dim: Number of the generator's classes; ``i2i-invert`` fills it in.
        masks: A folder with a mask for each image, by its name and of its file's size: white where the image
            counts. None: everywhere.
        start: A folder with a latent file for each image to begin with, by its name. The method reads them.

    Attributes:
        names: Names of all images.
        plan: Names of the images of each chunk, those of all processes.
        starts: The files in ``start``, one for each image; None where there are none.
        goes_on: Whether a chunk that a checkpoint was taken in goes on, and does not begin anew.
        nothing_left: What to say where a run that is continued has no chunk left.

    Raises:
        UserError: If an option is impossible; in :meth:`setup`, if there is no image, or a file is unusable.
    """

    aligned = False
    one_sided = True
    nothing_left = (
        "Every image has been searched for already; more images continue it: images=..., data.limit=..."
    )

    def __init__(
        self,
        images: str | Sequence[str] | None = None,
        size_px: int | None = None,
        channels: int | None = None,
        fit: str = "refuse",
        convert: str = "none",
        limit: int | None = None,
        num_faces: int = 4,
        batch_size: int = 4,
        num_workers: int | None = None,
        seed: int = 0,
        label: int | None = None,
        label_dim: int = 0,
        masks: str | None = None,
        start: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        check_choice("data.fit", fit, FITS)
        check_choice("data.convert", convert, CONVERSIONS)
        for key, value in (("limit", limit), ("num_faces", num_faces)):
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value}: give at least 1")
        if size_px is None or channels is None:
            raise UserError("data.size_px, data.channels: missing; give those of the generator's images")
        _check_label(label, label_dim)
        self.label, self.label_dim = label, label_dim
        self.masks, self.start = masks, start
        self.images = images
        self.size_px: tuple[int, int] = (size_px, size_px)
        self.in_channels = self.out_channels = self.channels = channels
        self.fit = fit
        self.convert = convert
        self.limit = limit
        self.num_faces = num_faces
        self.cache_in_memory = True
        self.names: list[str] = []
        self.plan: list[list[str]] = []
        self.goes_on = True
        self.starts: list[Path] | None = None
        self._source: PictureSource | None = None
        self._masks: PictureSource | None = None
        self._paths: list[Path] = []  # none of toy faces
        self._quads: list[Tensor] | None = None

    @property
    def num_train_images(self) -> int:
        """The number of images."""
        return len(self.names)

    def setup(self, stage: str | None = None) -> None:
        """Find and check the images, and let the run have as many epochs as there are chunks."""
        if self._source is None:
            self._source, self.names = self._faces() if self.images is None else self._files()
            self.starts = None if self.start is None else self._start_files(self.start)
            self._masks = None if self.masks is None else self._mask_source(self.masks)
        self._take([], self.names)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _take(self, begun: list[list[str]], rest: Sequence[str]) -> None:
        """Plan the chunks ``begun`` and then others of ``rest``; a chunk is an epoch."""
        at_once = self.batch_size * self._world_size
        self.plan = [*begun, *(list(rest[i : i + at_once]) for i in range(0, len(rest), at_once))]
        if self.trainer is not None:
            self.trainer.fit_loop.max_epochs = len(self.plan)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data, and what decides which image is where."""
        shares = {"batch_size": self.batch_size, "world_size": self._world_size}
        asked = {key: getattr(self, key) for key in ("fit", "convert", "label", "masks", "start")}
        return {**super().state_dict(), **shares, "plan": self.plan, "asked": asked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the chunks that are finished, with those images that were in none of them.

        Raises:
            UserError: If the state does not say which images the chunks have, or they were searched for with
                other cuts, labels, masks or starts.
        """
        super().load_state_dict(state_dict)
        if "plan" not in state_dict:
            raise UserError(
                "resume: this checkpoint does not say which images its chunks had, as those of this version "
                "do; begin anew"
            )
        for key, before in state_dict["asked"].items():
            now = getattr(self, key)
            if before != now:
                was, shown = ("null" if value is None else value for value in (before, now))
                raise UserError(
                    f"resume: the search began with data.{key}={was}, and this says data.{key}={shown}"
                )
        plan, (chunk, items) = state_dict["plan"], (state_dict["epoch"], state_dict["items"])
        shares = (state_dict["batch_size"], state_dict["world_size"])
        half_done = plan[chunk] if items else []
        self.goes_on = not half_done or (
            shares == (self.batch_size, self._world_size) and set(half_done) <= set(self.names)
        )
        begun = plan[: chunk + 1] if half_done and self.goes_on else plan[:chunk]
        if not self.goes_on:
            self._continue_at = chunk, 0
        there = {name for names in begun for name in names}
        self._take(begun, [name for name in self.names if name not in there])

    def _faces(self) -> tuple[PictureSource, list[str]]:
        if self.channels != 3:
            raise UserError(f"images=...: say which; toy faces are RGB, the generator's have {self.channels}")
        number = self.num_faces if self.limit is None else min(self.num_faces, self.limit)
        faces = ToyFaces("test", self.size_px[0], (), number)
        pictures = ToyFacesPictures(faces, "photo")
        return pictures, pictures.names

    def _files(self) -> tuple[PictureSource, list[str]]:
        assert self.images is not None
        given = [self.images] if isinstance(self.images, str) else list(self.images)
        if not all(given) or not given:
            raise UserError(
                f"images={self.images if isinstance(self.images, str) else given}: names none; give a file, "
                "a folder, a quoted pattern, or a list of these"
            )
        found = [file for one in given for file in find_files(one)][: self.limit]
        names = [name for name, _ in found]
        _refuse_twice("images", names, "; their results would overwrite each other")
        side, paths = self._side, [path for _, path in found]
        self._paths = paths
        where = f"images={given[0] if len(given) == 1 else f'{len(given)} places'}"
        if self.fit == "align":
            self._quads = find_faces(paths, side, where)
            return self._reader(paths, side), names
        source, problems = self._reader(paths, side), []
        for index, (_, path) in enumerate(found):
            try:
                header = source.checked(read_header, path, side)
                if header.height != header.width and self.fit == "refuse":
                    shown = f"{header.width}x{header.height}"
                    mend = "crop it, or data.fit=crop takes its middle, data.fit=align its face"
                    raise FileProblem("not square", mend, shown)
                source.headers(index)
            except FileProblem as problem:
                problem.name = problem.name or str(path)
                problems.append(problem)
        raise_problems(where, problems)
        return source, names

    @property
    def _side(self) -> SideFormat:
        return SideFormat("", "image", self.channels, self.convert, "this generator draws")

    def _reader(self, paths: Sequence[Path], side: SideFormat) -> FileImages:
        """Return what reads the images, or their masks."""
        geometry = Geometry("scale_shortest", None, self.size_px)
        if self._quads is None:
            return FileImages(paths, side, geometry, False)
        return AlignedFaces(paths, side, geometry, False, quads=self._quads, size_px=self.size_px[0])

    def _start_files(self, given: str) -> list[Path]:
        folder = Path(given).expanduser()
        require_folder("data.start", folder)
        files = [folder / f"{name}.safetensors" for name in self.names]
        lacking = [name for name, file in zip(self.names, files, strict=True) if not file.is_file()]
        if lacking:
            raise UserError(
                f"data.start={given}: no latent file of {first_names(lacking)} ({lacking[0]}.safetensors); "
                "each image takes one of its name, as another run's latents/ holds them"
            )
        return files

    def _mask_source(self, given: str) -> PictureSource:
        """Return the masks, cut as their images are, after a look at each of them."""
        folder = Path(given).expanduser()
        require_folder("data.masks", folder)
        files = list_images(folder)
        found = {name_below(folder, file): file for file in files}
        _refuse_twice(f"data.masks={given}", [name_below(folder, file) for file in files])
        lacking = [name for name in self.names if name not in found]
        if lacking:
            raise UserError(
                f"data.masks={given}: no mask of {first_names(lacking)}; each image takes one of its name"
            )
        paths = [found[name] for name in self.names]
        source = _Cropped(self._reader(paths, MASK), self.size_px[0])
        problems = []
        for index, path in enumerate(paths):
            try:
                header = read_header(path, MASK)
                size = (header.height, header.width)
                wanted = self._file_size(index)
                if size != wanted:
                    detail = f"{size[1]}x{size[0]}, the image {wanted[1]}x{wanted[0]}"
                    raise FileProblem("not of their image's size", detail=detail)
                if not bool((scale_to_network(torch.as_tensor(source[index][0])) > -1).any()):
                    raise FileProblem("empty (all black)", "nothing of the image would count")
            except FileProblem as problem:
                problem.name = problem.name or str(path)
                problems.append(problem)
        raise_problems(f"data.masks={given}", problems)
        return source

    def _file_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image before it is cut."""
        if not self._paths:
            return self.size_px
        header = read_header(self._paths[index], self._side)
        return header.height, header.width

    def train_dataloader(self):  # type: ignore[no-untyped-def]
        """Return the loader: every chunk as often as the method asks for."""
        assert self._source is not None
        assert self.trainer is not None
        steps = self.trainer.lightning_module.steps_per_chunk(self.batch_size)  # type: ignore[operator]
        height, width = self.size_px
        chunks = Chunks(
            _Cropped(self._source, height),
            self.names,
            self.plan,
            self.batch_size,
            self.trainer.global_rank,
            (self.channels, height, width),
            self._masks,
            self.starts,
        )
        # Shuffled, and so with the epoch in its keys; which of a chunk's steps is which makes no difference.
        self._train_sampler = EpochSampler(steps * self.batch_size, True, self.seed)
        if self._continue_at is not None:
            self._train_sampler.skip(*self._continue_at)
        return self._loader(chunks, self._train_sampler, self.batch_size, True)

    # An inversion validates nothing, and Lightning warns of a loader that it has no step for.
    val_dataloader = LightningDataModule.val_dataloader

    def to_network(self, batch: Item) -> TargetBatch:
        """Return images as floats in [-1, 1], and masks in [0, 1]."""
        found: TargetBatch = {"real": scale_to_network(batch["real"]), "name": batch["name"]}
        if self.label is not None:
            hot = torch.zeros(len(found["real"]), self.label_dim, device=found["real"].device)
            hot[:, self.label] = 1
            found["label"] = hot
        if "mask" in batch:
            found["mask"] = (scale_to_network(batch["mask"]) + 1) / 2
        if "start" in batch:
            found["start"] = batch["start"]
        return found

    def preview_batch(self, n: int) -> ImageBatch:
        """Return the first ``n`` images as network floats on the CPU."""
        assert self._source is not None
        source = _Cropped(self._source, self.size_px[0])
        pictures = [torch.as_tensor(fetch(source, index)[0]) for index in range(min(n, len(self.names)))]
        return self.to_network({"real": torch.stack(pictures), "name": self.names[:n]})

    def display_input(self, real_a: Tensor) -> Tensor:
        """Return images as RGB, uint8 ``(N, 3, H, W)``."""
        return images_to_rgb(real_a)

    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return images as RGB, uint8 ``(N, 3, H, W)``."""
        return images_to_rgb(b)


class _Cropped:
    """The middle square of every picture, which just covers it already."""

    def __init__(self, source: PictureSource, side: int) -> None:
        self.source, self.side = source, side

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        (picture,) = self.source[index]
        height, width = picture.shape[-2:]
        top, left = (height - self.side) // 2, (width - self.side) // 2
        return (picture[..., top : top + self.side, left : left + self.side],)


def _refuse_twice(where: str, names: Sequence[str], more: str = "") -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"{where}: two are called {twice[0]}{more}")


def _check_label(label: int | None, classes: int) -> None:
    """Raise ``UserError`` unless ``label`` is one of the classes, or None where there are none."""
    if classes == 0 and label is not None:
        raise UserError(f"data.label={label}: this generator is unconditional; leave it out")
    if classes > 0 and label is None:
        raise UserError(
            f"data.label: this generator has {classes} classes; give data.label=0 to {classes - 1}"
        )
    if label is not None and not 0 <= label < classes:
        raise UserError(f"data.label={label}: this generator has classes from 0 to {classes - 1}")


def find_files(place: str) -> list[tuple[str, Path]]:
    """Return the images of a file, a folder or a pattern, each with its name.

    Raises:
        UserError: If there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [(path.stem, path)]
    if path.is_dir():
        found = [(name_below(path, file), file) for file in list_images(path)]
        if not found:
            raise UserError(
                f"images={place}: no images (readable are {', '.join(EXTENSIONS)}); it holds "
                f"{content_of(path)}"
            )
        return found
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    found = [
        (file.stem, file) for file in matches if file.is_file() and file.name.lower().endswith(EXTENSIONS)
    ]
    if not found:
        raise UserError(f"images={place}: no such file or folder, and no image matches it as a pattern")
    return found
