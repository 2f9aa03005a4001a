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

from i2i_lightning.data.alignment import crop, face_quad, landmarks_of
from i2i_lightning.data.cache import Pictures
from i2i_lightning.data.checks import FileProblem, check_choice, raise_problems
from i2i_lightning.data.dataset import FileImages, PictureSource, fetch
from i2i_lightning.data.decode import CONVERSIONS, EXTENSIONS, SideFormat, decode, read_header
from i2i_lightning.data.display import images_to_rgb
from i2i_lightning.data.module import ImageDataModule, Item
from i2i_lightning.data.pairs import content_of, list_images, name_below
from i2i_lightning.data.sampler import AnyKey, EpochSampler, epoch_and_index
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesPictures
from i2i_lightning.data.transforms import Geometry, network_image, scale_to_network
from i2i_lightning.types import ImageBatch, UserError

FITS = ("refuse", "crop", "align")
KEY = "data.fit=align"


class Chunks:
    """The images of one process, chunk after chunk: chunk ``e`` is every batch of epoch ``e``.

    Args:
        source: All images.
        names: Their names.
        plan: Names of the images of each chunk, those of all processes.
        size: Images that a process has of a chunk, at most.
        rank: Number of this one.
        shape: (channels, height, width) of an image.
    """

    def __init__(
        self,
        source: PictureSource,
        names: Sequence[str],
        plan: Sequence[Sequence[str]],
        size: int,
        rank: int,
        shape: tuple[int, int, int],
    ) -> None:
        self.source, self.names, self.plan, self.size = source, names, plan, size
        self.rank, self.shape = rank, shape
        self._numbers = {name: number for number, name in enumerate(names)}
        self._decoded: tuple[int, Tensor] | None = None

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
            pictures = [torch.as_tensor(fetch(self.source, index)[0]) for index in self.indices(chunk)]
            images = torch.stack(pictures) if pictures else torch.zeros(0, *self.shape, dtype=torch.uint8)
            self._decoded = chunk, images
        return {"real": self._decoded[1], "name": [self.names[index] for index in self.indices(chunk)]}

    def __getitem__(self, key: AnyKey) -> Item:
        return self.__getitems__([key])


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
            the face out of every image, as FFHQ does; all faces are found before anything is searched.
        convert: ``none``, or ``match`` to convert 8-bit files to the generator's one or three channels.
        limit: Take the first so many images; None takes all.
        num_faces: Toy faces, where ``images`` is None.
        batch_size: Images of a chunk: those that are searched for together.
        num_workers: Worker processes; None takes 0, because a chunk is decoded once.
        seed: Does not matter here: nothing is drawn.

    Attributes:
        names: Names of all images.
        plan: Names of the images of each chunk, those of all processes.
        goes_on: Whether a chunk that a checkpoint was taken in goes on, and does not begin anew.

    Raises:
        UserError: If an option is impossible; in :meth:`setup`, if there is no image, or a file is unusable.
    """

    aligned = False
    one_sided = True

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
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        check_choice("data.fit", fit, FITS)
        check_choice("data.convert", convert, CONVERSIONS)
        for key, value in (("limit", limit), ("num_faces", num_faces)):
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value}: give at least 1")
        if size_px is None or channels is None:
            raise UserError("data.size_px, data.channels: missing; give those of the generator's images")
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
        self._source: PictureSource | None = None

    @property
    def num_train_images(self) -> int:
        """The number of images."""
        return len(self.names)

    def setup(self, stage: str | None = None) -> None:
        """Find and check the images, and let the run have as many epochs as there are chunks."""
        if self._source is None:
            self._source, self.names = self._faces() if self.images is None else self._files()
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
        return {**super().state_dict(), **shares, "plan": self.plan}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the chunks that are finished, with those images that were in none of them.

        Raises:
            UserError: If the state does not say which images the chunks have.
        """
        super().load_state_dict(state_dict)
        if "plan" not in state_dict:
            raise UserError(
                "resume: this checkpoint does not say which images its chunks had, as those of this version "
                "do; begin anew"
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
        faces = ToyFaces("test", self.size_px[0], (), self.num_faces)
        pictures = ToyFacesPictures(faces, "photo")
        return pictures, pictures.names

    def _files(self) -> tuple[PictureSource, list[str]]:
        assert self.images is not None
        given = [self.images] if isinstance(self.images, str) else list(self.images)
        found = [file for one in given for file in find_files(one)][: self.limit]
        names = [name for name, _ in found]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise UserError(f"images: two are called {twice[0]}; their results would overwrite each other")
        side = SideFormat("", "image", self.channels, self.convert)
        paths = [path for _, path in found]
        where = f"images={given[0] if len(given) == 1 else f'{len(given)} places'}"
        if self.fit == "align":
            return AlignedFaces(paths, side, self.size_px[0], where), names
        source = FileImages(paths, side, Geometry("scale_shortest", None, self.size_px), False)
        problems = []
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
        )
        # Shuffled, and so with the epoch in its keys; which of a chunk's steps is which makes no difference.
        self._train_sampler = EpochSampler(steps * self.batch_size, True, self.seed)
        if self._continue_at is not None:
            self._train_sampler.skip(*self._continue_at)
        return self._loader(chunks, self._train_sampler, self.batch_size, True)

    # An inversion validates nothing, and Lightning warns of a loader that it has no step for.
    val_dataloader = LightningDataModule.val_dataloader

    def to_network(self, batch: Item) -> ImageBatch:
        """Return images as floats in [-1, 1]."""
        return {"real": scale_to_network(batch["real"]), "name": batch["name"]}

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
        (picture,) = fetch(self.source, index)
        height, width = picture.shape[-2:]
        top, left = (height - self.side) // 2, (width - self.side) // 2
        return (picture[..., top : top + self.side, left : left + self.side],)


class AlignedFaces:
    """Faces cut out of photos as FFHQ has them; see :mod:`i2i_lightning.data.alignment`.

    Args:
        paths: Files of photos.
        side: What is expected of them.
        size_px: Side of a face.
        where: The images' place in the config, for messages.

    Raises:
        UserError: If a file is unusable, or does not show one face: one message for all of them.
    """

    def __init__(self, paths: Sequence[Path], side: SideFormat, size_px: int, where: str) -> None:
        self.paths, self.side, self.size_px = paths, side, size_px
        self.quads: list[Tensor] = []
        problems = []
        for path in paths:
            try:
                pixels = decode(path, side)
                self.quads.append(face_quad(landmarks_of(path, pixels, KEY)))
            except FileProblem as problem:
                problem.name = problem.name or str(path)
                problems.append(problem)
            except UserError as error:
                words = str(error).removeprefix(f"{KEY}: ").removeprefix(f"{path}: ")
                problems.append(FileProblem(f"not one face to align ({KEY})", detail=words, name=str(path)))
        raise_problems(where, problems)

    def __getitem__(self, index: int) -> Pictures:
        """Return the face of a photo, uint8 ``(C, size_px, size_px)``."""
        whole = network_image(decode(self.paths[index], self.side))
        face = crop(whole, self.quads[index], self.size_px)[0]
        return (face.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy(),)


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
