"""From seeds to latents, noise and images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.data.checks import check_choice
from i2i_lightning.editing.interpolation import lerp, slerp
from i2i_lightning.editing.mixing import mix
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

MAX_SEED = 2**32 - 1
"""What numpy's generator takes."""
PIXELS_PER_BATCH = {"cpu": 2**20, "mps": 2**22, "cuda": 2**24}
"""16 images of 256 px on a CPU, and of 1024 px on a GPU."""
MOST_PER_BATCH = 64


@dataclass(frozen=True)
class Points:
    """What pictures are synthesised from.

    Args:
        w_plus: ``(N, num_ws, w_dim)`` on the generator's device, truncated.
        noise: ``const``, ``none``, or a map for each picture and noise input, ``(N, 1, h, w)`` on the CPU.
    """

    w_plus: Tensor
    noise: Literal["const", "none"] | list[Tensor] = "const"

    def __len__(self) -> int:
        return len(self.w_plus)

    def __getitem__(self, part: slice | Sequence[int]) -> Points:
        chosen = part if isinstance(part, slice) else list(part)
        noise = self.noise if isinstance(self.noise, str) else [maps[chosen] for maps in self.noise]
        return Points(self.w_plus[chosen], noise)


class Sampler:
    """Draws what seeds stand for.

    A seed means the same z as in NVIDIA's StyleGAN programs, the normal numbers of numpy's Mersenne twister,
    on every device and in every batch. With ``random`` noise, its maps are the numbers that follow.

    Args:
        generator: The network; it is moved to ``device`` and set to eval mode.
        device: Where to synthesise.
        truncation: psi: 1 changes nothing, 0 draws the mean image alone.
        cutoff: Rows of w_plus that are truncated, from the coarsest; None truncates all.
        noise: ``const``, the maps that the generator has stored; ``random``, others for each seed; ``none``.
        batch_size: Images synthesised together; None takes what suits their size and the device.

    Raises:
        UserError: If an option is impossible for this generator.
    """

    def __init__(
        self,
        generator: StyleGenerator,
        device: torch.device | None = None,
        truncation: float = 1.0,
        cutoff: int | None = None,
        noise: str = "const",
        batch_size: int | None = None,
    ) -> None:
        if not math.isfinite(truncation):
            raise UserError(f"truncation={truncation}: give a number, such as 0.7; 1 truncates nothing")
        if cutoff is not None and not 0 <= cutoff <= generator.num_ws:
            raise UserError(
                f"cutoff={cutoff}: this generator has {generator.num_ws} rows of w_plus; give how many of "
                f"them, from the coarsest, are truncated (0 to {generator.num_ws}), or null for all"
            )
        check_choice("noise", noise, ("const", "random", "none"))
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        self.device = device or torch.device("cpu")
        self.generator = generator.to(self.device).eval()
        self.truncation = truncation
        self.cutoff = cutoff
        self.noise = noise
        fitting = PIXELS_PER_BATCH.get(self.device.type, 2**20) // generator.size_px**2
        self.batch_size = batch_size or min(max(fitting, 1), MOST_PER_BATCH)

    def check_label(self, label: int | None) -> None:
        """Raise ``UserError`` unless ``label`` is one of the classes, or None where there are none."""
        classes = self.generator.label_dim
        if classes == 0 and label is not None:
            raise UserError(f"label={label}: this generator is unconditional; leave it out")
        if classes > 0 and label is None:
            raise UserError(f"label: this generator has {classes} classes; give label=0 to {classes - 1}")
        if label is not None and not 0 <= label < classes:
            raise UserError(f"label={label}: this generator has classes from 0 to {classes - 1}")

    def one_hot(self, label: int | None) -> Tensor | None:
        """Return ``label`` as the generator takes it, ``(label_dim,)``; None where there are no classes.

        Raises:
            UserError: If there is no such class.
        """
        self.check_label(label)
        if label is None:
            return None
        hot = torch.zeros(self.generator.label_dim, device=self.device)
        hot[label] = 1
        return hot

    def z(self, seeds: Sequence[int]) -> Tensor:
        """Return ``z (N, z_dim)`` on the CPU."""
        drawn = [np.random.RandomState(seed).randn(self.generator.z_dim) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).float()

    def noise_of(self, seeds: Sequence[int]) -> Literal["const", "none"] | list[Tensor]:
        """Return the noise of seeds; see :class:`Points`."""
        if self.noise == "const" or self.noise == "none":
            return "const" if self.noise == "const" else "none"
        drawn = [self._maps(seed) for seed in seeds]
        return [torch.stack(maps) for maps in zip(*drawn, strict=True)]

    def _maps(self, seed: int) -> list[Tensor]:
        """Return the noise maps of one seed, each ``(1, h, w)``."""
        source = np.random.RandomState(seed)
        source.randn(self.generator.z_dim)
        return [torch.from_numpy(source.randn(1, *shape)).float() for shape in self.generator.noise_shapes]

    @torch.no_grad()
    def w(self, z: Tensor, label: int | None = None) -> Tensor:
        """Return ``w (N, w_dim)`` of ``z (N, z_dim)``, before truncation."""
        hot = self.one_hot(label)
        labels = None if hot is None else hot.expand(len(z), -1)
        return self.generator.mapping.to_w(z.to(self.device), labels)

    @torch.no_grad()
    def w_plus(self, w: Tensor) -> Tensor:
        """Return ``w (N, w_dim)`` truncated, one row for each layer, ``(N, num_ws, w_dim)``."""
        return self.generator.mapping.broadcast(w, self.truncation, self.cutoff)

    def points(self, seeds: Sequence[int], label: int | None = None) -> Points:
        """Return what the pictures of ``seeds`` are synthesised from.

        Raises:
            UserError: If there is no such class.
        """
        return Points(self.w_plus(self.w(self.z(seeds), label)), self.noise_of(seeds))

    @torch.no_grad()
    def images(self, points: Points) -> Tensor:
        """Return the images of ``points``, float ``(N, channels, size_px, size_px)`` on the CPU."""
        noise = points.noise
        maps = noise if isinstance(noise, str) else [each.to(self.device) for each in noise]
        image: Tensor = self.generator.synthesis(points.w_plus, maps)
        return image.float().cpu()

    def samples(self, seeds: Sequence[int], label: int | None = None) -> Iterator[tuple[int, Points, Tensor]]:
        """Yield each seed with its points, a batch of one, and its image ``(channels, size_px, size_px)``."""
        for start in range(0, len(seeds), self.batch_size):
            some = seeds[start : start + self.batch_size]
            points = self.points(some, label)
            for index, (seed, image) in enumerate(zip(some, self.images(points), strict=True)):
                yield seed, points[index : index + 1], image

    def mixtures(
        self, bases: Sequence[int], styles: Sequence[int], rows: Sequence[int], label: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the images of a style-mixing matrix, row by row.

        Args:
            bases: A seed for each row of the matrix: the latent whose other rows, and whose noise, stay.
            styles: A seed for each column: the latent that ``rows`` of w_plus come from.
            rows: Rows of w_plus.
            label: The class of all.
        """
        style = self.points(styles, label)
        for seed in bases:
            base = self.points([seed], label)
            for start in range(0, len(styles), self.batch_size):
                some = style[start : start + self.batch_size]
                repeated = base[[0] * len(some)]
                yield from self.images(replace(repeated, w_plus=mix(repeated.w_plus, some.w_plus, rows)))

    def interpolation(
        self,
        seeds: Sequence[int],
        frames: int,
        space: Literal["z", "w"] = "w",
        loop: bool = True,
        label: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images of a way that leads from seed to seed.

        Image ``k * frames`` is the picture of seed k. Random noise goes along, on a great arc.

        Args:
            seeds: At least two.
            frames: Images from one seed to the next.
            space: ``z``, on great arcs; or ``w``, on straight lines.
            loop: Return to the first seed; the image of that is not repeated.
            label: The class of all.
        """
        z = self.z(seeds)
        w = self.w(z, label)
        noise = self.noise_of(seeds)
        count = frame_count(len(seeds), frames, loop)
        for first in range(0, count, self.batch_size):
            numbers = torch.arange(first, min(first + self.batch_size, count))
            start, t = numbers // frames, (numbers % frames) / frames
            end = (start + 1) % len(seeds)  # of the last image of an open way, t is 0
            if space == "z":
                between = self.w(slerp(z[start], z[end], t), label)
            else:
                between = lerp(w[start.to(w.device)], w[end.to(w.device)], t)
            moved = noise if isinstance(noise, str) else [slerp(maps[start], maps[end], t) for maps in noise]
            yield from self.images(Points(self.w_plus(between), moved))


def frame_count(seeds: int, frames: int, loop: bool) -> int:
    """Return how many images :meth:`Sampler.interpolation` yields for so many seeds."""
    return seeds * frames if loop else (seeds - 1) * frames + 1
