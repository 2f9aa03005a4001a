"""A trained generator as one function from image to image."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from i2i_lightning.checkpoints.load import open_generator
from i2i_lightning.translation.borders import from_array, from_pil, from_tensor, to_pil
from i2i_lightning.translation.formats import check_formats, to_pixels
from i2i_lightning.translation.modes import (
    Draws,
    ImageStatistics,
    TestMode,
    depends_on_image,
    image_seed,
    in_test_mode,
    noise,
)
from i2i_lightning.translation.tiling import Corner, plan, translate_tiles
from i2i_lightning.translation.views import View, stacked
from i2i_lightning.types import ImageFormat, UserError

Precision = Literal["fp32", "bf16", "fp16"]
Array = npt.NDArray[Any]

TILE_PX = 1024
"""Side of the largest square that is translated in one piece, unless said otherwise."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


class Translator:
    """Translate images of any size as a generator was trained to: ``Translator.load(path)(image)``.

    It carries what the generator's images are: channels, depth, label classes, lightness and colour. An image
    that is not larger than ``tile_px`` squared is translated in one piece; it is continued by its mirror
    image to a size the network takes, and cut back. A larger one is translated in overlapping tiles; then the
    norms take their statistics from the whole image at reduced size, so that all its tiles are normalised
    alike.

    In test mode ``train`` the dropout and noise of an image depend on the seed and the image's key alone, and
    its statistics on nothing but itself: not on the batch it is in, nor on the order.

    Args:
        generator: The network; it is moved to ``device`` and otherwise left as it is.
        input: What its input images are.
        output: What its output images are.
        test_mode: ``train``: normalise each image by its own statistics, with dropout; ``eval``: by running
            statistics, without.
        z_dim: Length of the noise vector the network takes, 0 for none.
        direction: What it translates, as the checkpoint calls it.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes the best there is.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast.
        seed: Seed of dropout and noise.
        tile_px: Side of the square up to whose area an image is translated in one piece, and of the tiles of
            larger ones; None never cuts.

    Raises:
        UserError: If the device is not there, or an option is impossible.
    """

    def __init__(
        self,
        generator: nn.Module,
        input: ImageFormat,
        output: ImageFormat,
        *,
        test_mode: TestMode = "train",
        z_dim: int = 0,
        direction: str = "ab",
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        seed: int = 0,
        tile_px: int | None = TILE_PX,
    ) -> None:
        check_formats(input, output)
        if test_mode not in ("train", "eval"):
            raise UserError(f"test_mode={test_mode}: give train or eval")
        if precision not in ("fp32", *_AUTOCAST):
            raise UserError(f"precision={precision}: choose one of fp32, bf16, fp16")
        if tile_px is not None and tile_px < 16:
            raise UserError(f"tile_px={tile_px}: give at least 16, or null for no tiles")
        self.device = find_device(device)
        self.generator = generator.to(self.device)
        self.input = input
        self.output = output
        self.test_mode: TestMode = test_mode
        self.z_dim = z_dim
        self.direction = direction
        self.precision: Precision = precision
        self.seed = seed
        self.tile_px = tile_px
        self.multiple_px = int(getattr(generator, "size_multiple", 1))
        self.least_px = _least_side(generator, self.multiple_px)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        direction: str | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        test_mode: TestMode | None = None,
        seed: int = 0,
        tile_px: int | None = TILE_PX,
        averaged: bool = True,
        dropout: str | bool | None = None,
    ) -> Translator:
        """Open a checkpoint of ours, a reference ``.pth``, or safetensors.

        Args:
            path: The file, or a run folder: its ``last.ckpt``, else its ``best.ckpt``; or a folder of the
                reference's ``latest_net_G*.pth``.
            direction: ``ab`` or ``ba``, for a method with two; None takes the checkpoint's first.
            device: See the class.
            precision: See the class.
            test_mode: None takes what the generator was trained for.
            seed: See the class.
            tile_px: See the class.
            averaged: Take the moving average of the weights where there is one.
            dropout: Where dropout stands, against what the file says; see
                :func:`~i2i_lightning.checkpoints.load.open_generator`.

        Raises:
            UserError: If the file is not one that can be used.
        """
        loaded = open_generator(
            find_checkpoint(path), direction=direction, averaged=averaged, dropout=dropout
        )
        return cls(
            loaded.network,
            loaded.input,
            loaded.output,
            test_mode=test_mode or loaded.test_mode,
            z_dim=loaded.z_dim,
            direction=loaded.direction,
            device=device,
            precision=precision,
            seed=seed,
            tile_px=tile_px,
        )

    # ------------------------------------------------------------------------------------------------ images

    @overload
    def __call__(self, image: Image.Image, key: str = "") -> Image.Image: ...

    @overload
    def __call__(self, image: Array, key: str = "") -> Array: ...

    @overload
    def __call__(self, image: Tensor, key: str = "") -> Tensor: ...

    def __call__(self, image: Any, key: str = "") -> Any:
        """Translate an image into one of the same sort and size.

        Args:
            image: A PIL image; an array ``(H, W)`` or ``(H, W, C)``; or a tensor ``(C, H, W)`` or
                ``(N, C, H, W)``. Numbers are uint8, uint16, or floats in [-1, 1]. A label map is given as
                ids: an index image, an integer array ``(H, W)``, or an integer tensor with one channel.
            key: Together with the seed it decides the dropout and the noise, in test mode ``train``: the same
                key gives the same result. All images of a batch share it.

        Returns:
            As given: PIL for PIL, an array of the same type and axes, or a tensor of the same type and
            device. Integers where a label map goes in and an image comes out are of the depth the generator
            was trained with. Label maps come out as ids.

        Raises:
            UserError: If the image has other channels, or another type, than the generator was trained with.
        """
        if isinstance(image, Image.Image):
            pixels = from_pil(image, self.input)
            dtype = torch.uint16 if pixels.dtype == torch.uint16 else torch.uint8
            dtype = self._output_dtype(torch.float32 if pixels.is_floating_point() else dtype)
            return to_pil(self.pictures([pixels], [key], dtype)[0], self.output)
        if isinstance(image, np.ndarray):
            pixels = from_array(image, self.input)
            out = self.pictures([pixels], [key], self._output_dtype(pixels.dtype))[0].numpy()
            if image.dtype.kind == "f" and out.dtype.kind == "f":
                out = out.astype(image.dtype)
            if out.ndim == 3:
                out = out[0] if image.ndim == 2 and out.shape[0] == 1 else out.transpose(1, 2, 0)
            return np.ascontiguousarray(out)
        if isinstance(image, Tensor):
            batch = from_tensor(image, self.input)
            dtype = image.dtype if image.is_floating_point() else self._output_dtype(batch[0].dtype)
            outs = torch.stack(self.pictures(batch, [key] * len(batch), dtype))
            outs = outs[:, None] if outs.dim() == 3 else outs
            return (outs if image.dim() == 4 else outs[0]).to(image.device)
        raise UserError(f"{type(image).__name__}: give a PIL image, a numpy array or a tensor")

    def _output_dtype(self, given: torch.dtype) -> torch.dtype:
        """Return the type of an output for an input of type ``given``; ids say nothing about a depth."""
        return _DTYPES[self.output.dtype] if self.input.kind == "labels" else given

    def pictures(
        self,
        pictures: Sequence[Tensor],
        keys: Sequence[str],
        dtype: torch.dtype | None = None,
        tile_batch: int = 1,
    ) -> list[Tensor]:
        """Translate pictures of one :meth:`padded_size` together.

        Args:
            pictures: Pixels ``(C, H, W)`` as :func:`~i2i_lightning.translation.formats.to_network` takes
                them, or ids ``(H, W)``; of any sizes that are padded to the same.
            keys: Their keys; see :meth:`__call__`.
            dtype: uint8, uint16 or a float type; None is what the generator was trained with.
            tile_batch: Tiles translated together where a picture is cut.

        Returns:
            Pixels ``(C', H, W)``, or ids ``(H, W)``, on the CPU if they came from there.
        """
        dtype = dtype or _DTYPES[self.output.dtype]
        seeds = [image_seed(self.seed, key) for key in keys]
        views = [View(pixels, self.input, self.device) for pixels in pictures]
        if self.is_tiled(*views[0].size):
            pairs = zip(views, seeds, strict=True)
            return [self._tiled(view, seed, dtype, tile_batch) for view, seed in pairs]
        padded = self.padded_size(*views[0].size)
        inputs = stacked([view.pixels_of((0, 0), padded) for view in views], self.input, self.device)
        outputs = self._forward(inputs, Draws(seeds))
        pixels = to_pixels(outputs, self.output, dtype, inputs)
        return [
            out[..., : view.size[0], : view.size[1]].to(view.pixels.device)
            for out, view in zip(pixels, views, strict=True)
        ]

    def _tiled(self, view: View, seed: int, dtype: torch.dtype, tile_batch: int) -> Tensor:
        height, width = view.size
        result: Tensor | None = None

        def write(top: int, rows: Tensor) -> None:
            nonlocal result
            # The network's input is needed again where colour is joined to lightness.
            size = rows.shape[1], rows.shape[2]
            shown = view.read((top, 0), size)[None] if self.output.kind == "chroma" else None
            pixels = to_pixels(rows[None], self.output, dtype, shown)[0]
            if result is None:
                shape = (*pixels.shape[:-2], height, width)
                result = torch.empty(shape, dtype=pixels.dtype, device=view.pixels.device)
            kept = min(pixels.shape[-2], height - top)
            result[..., top : top + kept, :] = pixels[..., :kept, :width].to(result.device)

        self._translate_tiles(view, seed, write, tile_batch)
        assert result is not None
        return result

    # ------------------------------------------------------------------------------------------------ network
    # space

    def network(self, real_a: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Translate images in network space: what a data module's batches hold, and what metrics compare.

        Args:
            real_a: Float ``(N, C, H, W)`` in [-1, 1], or one-hot, of any height and width, on any device.
            seeds: A seed for each image, for dropout and noise; None gives all the translator's own.

        Returns:
            Float32 ``(N, C', H, W)`` on the input's device. A batch gives what its images give one by one.
        """
        seeds = [image_seed(self.seed, "")] * len(real_a) if seeds is None else seeds
        if len(seeds) != len(real_a):
            raise ValueError(f"{len(seeds)} seeds for {len(real_a)} images: give one each")
        height, width = real_a.shape[-2:]
        views = [View(image, None, self.device) for image in real_a]
        if not self.is_tiled(height, width):
            padded = self.padded_size(height, width)
            inputs = torch.stack([view.read((0, 0), padded) for view in views])
            return self._forward(inputs, Draws(seeds))[..., :height, :width].to(real_a.device)
        images = [self._tiled_network(view, seed) for view, seed in zip(views, seeds, strict=True)]
        return torch.stack(images)

    def _tiled_network(self, view: View, seed: int) -> Tensor:
        strips: list[Tensor] = []
        self._translate_tiles(view, seed, lambda top, rows: strips.append(rows.to(view.pixels.device)), 1)
        return torch.cat(strips, dim=1)[:, : view.size[0], : view.size[1]]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is continued: the next that the network takes."""
        rows, columns = (
            max(-(-side // self.multiple_px) * self.multiple_px, self.least_px) for side in (height, width)
        )
        return rows, columns

    def is_tiled(self, height: int, width: int) -> bool:
        """Return whether an image of this size is cut into tiles."""
        return self.tile_px is not None and math.prod(self.padded_size(height, width)) > self.tile_px**2

    def _translate_tiles(
        self, view: View, seed: int, write: Callable[[int, Tensor], None], tile_batch: int
    ) -> None:
        assert self.tile_px is not None
        by_image = depends_on_image(self.generator, self.test_mode)
        statistics = self._statistics(view, seed) if by_image else None

        def run(tiles: Tensor, corners: Sequence[Corner]) -> Tensor:
            return self._forward(tiles, Draws([seed] * len(tiles), corners), statistics)

        tiling = plan(*self.padded_size(*view.size), self.tile_px, self.multiple_px)
        translate_tiles(tiling, view.read, run, write, tile_batch)

    def _statistics(self, view: View, seed: int) -> ImageStatistics:
        """Return the norms' statistics over the whole image, reduced to the area of one tile.

        The alternatives are worse: statistics tile by tile shift the tone from tile to tile, exact ones over
        tiles at full size need a pass per norm layer.
        """
        assert self.tile_px is not None
        scale = min(self.tile_px / math.sqrt(math.prod(self.padded_size(*view.size))), 1)
        height, width = (max(round(scale * side), 1) for side in view.size)
        small = View(view.reduced(height, width), None, self.device)
        statistics = ImageStatistics()
        self._forward(small.read((0, 0), self.padded_size(height, width))[None], Draws([seed]), statistics)
        statistics.frozen = True
        return statistics

    def _forward(self, inputs: Tensor, draws: Draws, statistics: ImageStatistics | None = None) -> Tensor:
        """Run the network on images of a size it takes; return float32."""
        given = [inputs]
        if self.z_dim:
            given.append(noise(draws.seeds, self.z_dim).to(inputs))
        half = _AUTOCAST.get(self.precision)
        autocast = nullcontext() if half is None else torch.autocast(self.device.type, dtype=half)
        # The lock, because the network's modules are changed while it runs.
        mode = self.test_mode
        with self._lock, in_test_mode(self.generator, mode, draws, statistics) as generator, autocast:
            return cast(Tensor, generator(*given)).float()


def _least_side(generator: nn.Module, multiple_px: int) -> int:
    """Return the shortest side that the network takes."""
    check = getattr(generator, "check_size", None)
    for side in (multiple_px * factor for factor in range(1, 9)):
        try:
            if check is not None:
                check(side, side)
        except UserError:
            continue
        return side
    raise ValueError(f"{type(generator).__name__} takes no multiple of its size_multiple={multiple_px}")


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the device to run on; None or ``auto`` takes the best there is.

    Raises:
        UserError: If it is not on this machine.
    """
    if device in (None, "auto"):
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        found = torch.device(cast(str, device))
    except RuntimeError:
        raise UserError(f"device={device}: choose one of auto, cpu, cuda, cuda:1, mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(found.type, False):
        raise UserError(f"device={device}: torch finds none on this machine; take device=auto or device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device}: this machine has {torch.cuda.device_count()}, counted from cuda:0")
    return found


def find_checkpoint(path: str | Path) -> Path:
    """Return ``path``, or if it is a run folder of ours, its checkpoint: ``last``, else ``best``."""
    folder = Path(path).expanduser()
    for name in ("checkpoints/last.ckpt", "last.ckpt", "checkpoints/best.ckpt", "best.ckpt"):
        if (folder / name).is_file():
            return folder / name
    return folder
