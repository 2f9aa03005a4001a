"""Where an inversion begins, and the statistics of w that it measures distances by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.methods.inversion.targets import Targets, normal, uniform
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

SAMPLES = 10_000
SEED = 123
"""Of the latents that the statistics of w are taken over; both are the published projector's."""
BATCH = 1000
CANDIDATES_AT_ONCE = 16
"""Starts that are rendered together, whatever the batch: what they are compared by must not depend on it."""

Compare = Callable[[Tensor, Tensor], Tensor]
"""Takes images (c, C, S, S) and the indices (n,) of targets, and returns objectives (n, c)."""


@dataclass(frozen=True)
class Start:
    """The first latent of every image.

    Args:
        kind: ``mean``, the mean latent; ``random``, every number uniform in [-1, 1] (Abdal et al. 2019,
            section 4.3; in z, from N(0, 1)); ``mapped``, w of a random z; ``best``, of the mean latent and
            random z's, or of random z's alone in z, the one with the lowest objective; ``previous``, where
            the image before ended, for the frames of a video; ``given``, a latent handed over with the image.
        candidates: Latents that ``best`` chooses from, the same for all images.
        truncation: psi of those of them that are mapped, and of ``mapped``.
        noise: The first noise maps: ``stored``, the generator's own, or ``random``.
    """

    kind: Literal["mean", "random", "mapped", "best", "previous", "given"] = "mean"
    candidates: int = 32
    truncation: float = 1.0
    noise: Literal["stored", "random"] = "stored"

    def __post_init__(self) -> None:
        kinds = ("mean", "random", "mapped", "best", "previous", "given")
        if self.kind not in kinds:
            raise UserError(f"method.start.kind={self.kind}: give {', '.join(kinds)}")
        if self.candidates < 1:
            raise UserError(f"method.start.candidates={self.candidates}: give at least 1")
        if not 0 <= self.truncation <= 1:
            raise UserError(f"method.start.truncation={self.truncation}: give a number from 0 to 1")
        if self.noise not in ("stored", "random"):
            raise UserError(f"method.start.noise={self.noise}: give stored or random")


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of w.

    Args:
        mean: (1 or N, D).
        std: The root of the mean of ``||w - mean||^2``, (1 or N,): about sqrt(D) times the deviation of one
            number.
    """

    mean: Tensor
    std: Tensor


@torch.no_grad()
def statistics(
    generator: StyleGenerator, label: Tensor | None = None, samples: int = SAMPLES, seed: int = SEED
) -> Statistics:
    """Return the statistics of w over ``samples`` z, for each ``label (N, K)`` where there are labels.

    They are sampled, as the published projector does: some published files carry no mean latent, and none
    carries a spread.
    """
    if label is None:
        mean, std = _statistics(generator, None, samples, seed)
        return Statistics(mean[None], std[None])
    unique, inverse = torch.unique(label, dim=0, return_inverse=True)
    pairs = [_statistics(generator, one[None], samples, seed) for one in unique]
    mean, std = (torch.stack(values)[inverse] for values in zip(*pairs, strict=True))
    return Statistics(mean, std)


def _statistics(
    generator: StyleGenerator, label: Tensor | None, samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    like = generator.w_avg
    # NumPy's old generator, whose numbers are the same everywhere and for good.
    z = torch.from_numpy(np.random.RandomState(seed).randn(samples, generator.z_dim)).to(like.dtype)
    parts = []
    for part in torch.split(z, BATCH):
        labels = None if label is None else label.expand(len(part), -1)
        parts.append(generator.mapping.to_w(part.to(like.device), labels).double())
    w = torch.cat(parts)
    mean = w.mean(0)
    std = (w - mean).square().sum(1).mean().sqrt()
    return mean.to(like.dtype), std.to(like.dtype)


class FirstLatents:
    """The latents that a batch begins with, in the space of the first stage.

    Args:
        generator: What draws.
        targets: The images.
        start: Where to begin.
        space: z, w or w_plus.
        seed: Of all draws.
        statistics: Of w.
    """

    def __init__(
        self,
        generator: StyleGenerator,
        targets: Targets,
        start: Start,
        space: str,
        seed: int,
        statistics: Statistics,
    ) -> None:
        self.generator = generator
        self.targets = targets
        self.start = start
        self.space = space
        self.seed = seed
        self.statistics = statistics
        self.like = generator.w_avg

    def mean(self) -> Tensor:
        """Return the mean latent for all images."""
        return self._widen(self.statistics.mean[:, None].expand(len(self.targets), -1, -1))

    def random(self) -> Tensor:
        """Return numbers from [-1, 1], and from N(0, 1) in z."""
        if self.space == "z":
            return self._random_z()
        rows = self.generator.num_ws if self.space == "w_plus" else 1
        draws = [
            uniform((rows, self.generator.w_dim), self.seed, name, "start") for name in self.targets.names
        ]
        return torch.stack(draws).to(self.like)

    def mapped(self) -> Tensor:
        """Return w of a random z for each image, and that z in z."""
        z = self._random_z()
        return z if self.space == "z" else self._widen(self._truncated(z, self.targets.label, self._means()))

    def best(self, compare: Compare) -> Tensor:
        """Return for each image the candidate of the lowest objective; all have the same candidates."""
        count, number = len(self.targets), self.start.candidates
        z = normal((number, self.generator.z_dim), self.seed, "candidates").to(self.like)
        everyone = torch.arange(count, device=self.like.device)
        # What a z looks like depends on the label: every label has candidates of its own.
        groups = (everyone,) if self.targets.label is None else torch.split(everyone, 1)
        found = []
        for index in groups:
            label = self.targets.rows("label", index[:1])
            label = None if label is None else label.expand(number, -1)
            if self.space == "z":
                candidates, w = z, self.generator.mapping.to_w(z, label)[:, None]
            else:
                mean = self._means()[index[:1]]
                candidates = w = torch.cat([mean, self._truncated(z[1:], _first(label, number - 1), mean)])
            objectives = [
                compare(self.generator.synthesis(part.expand(-1, self.generator.num_ws, -1), "const"), index)
                for part in torch.split(w, CANDIDATES_AT_ONCE)
            ]
            found.append(candidates[torch.cat(objectives, 1).argmin(1)])
        chosen = torch.cat(found)
        return chosen if self.space == "z" else self._widen(chosen)

    def given(self, latent: Tensor) -> Tensor:
        """Return ``latent`` for all images, checked.

        Args:
            latent: (1 or N, z_dim) in z, else (1 or N, D), (1 or N, 1, D) or (1 or N, L, D).

        Raises:
            UserError: If it does not fit the generator, the images or the space.
        """
        count = len(self.targets)
        latent = in_space(latent.to(self.like), self.generator, self.space, count)
        latent = latent.expand(count, *latent.shape[1:])
        return latent.clone() if self.space == "z" else self._widen(latent)

    def _random_z(self) -> Tensor:
        width = (self.generator.z_dim,)
        return torch.stack([normal(width, self.seed, name, "start") for name in self.targets.names]).to(
            self.like
        )

    def _means(self) -> Tensor:
        """Return the mean latent of each image, (N, 1, D)."""
        return self.statistics.mean[:, None].expand(len(self.targets), -1, -1)

    def _truncated(self, z: Tensor, label: Tensor | None, mean: Tensor) -> Tensor:
        return torch.lerp(mean, self.generator.mapping.to_w(z, label)[:, None], self.start.truncation)

    def _widen(self, w: Tensor) -> Tensor:
        """Return ``w (N, 1 or L, D)`` in the space, as a tensor of its own."""
        rows = self.generator.num_ws if self.space == "w_plus" else 1
        return w.expand(-1, rows, -1).clone()


def in_space(latent: Tensor, generator: StyleGenerator, space: str, count: int) -> Tensor:
    """Return a first latent as (1 or N, z_dim) in z, (1 or N, 1, D) in w, else (1 or N, 1 or L, D).

    Args:
        latent: See :meth:`FirstLatents.given`.
        generator: What it is for.
        space: z, w or w_plus.
        count: N, the number of images.

    Raises:
        UserError: If it does not fit the generator, the images or the space.
    """
    if not bool(torch.isfinite(latent).all()):
        raise UserError("the latent to begin with holds NaN or infinity")
    rows, width = generator.num_ws, generator.w_dim
    if space != "z" and latent.dim() == 2:
        latent = latent[:, None]
    fits = (
        latent.shape[1:] == (generator.z_dim,)
        if space == "z"
        else latent.shape[1:] in ((1, width), (rows, width))
    )
    if not fits or len(latent) not in (1, count):
        wanted = f"({count}, {generator.z_dim})" if space == "z" else f"({count}, {rows}, {width})"
        raise UserError(
            f"the latent to begin with has shape {tuple(latent.shape)}: in {space}, this generator takes "
            f"{wanted} for {count} images"
        )
    if space == "w" and latent.shape[1] > 1:
        if not torch.equal(latent, latent[:, :1].expand_as(latent)):
            raise UserError(
                "the rows of the latent to begin with differ, and the first stage moves w, one row for all: "
                "take a preset that moves w_plus"
            )
        latent = latent[:, :1]
    return latent


def first_noise(
    generator: StyleGenerator,
    targets: Targets,
    kind: str,
    seed: int,
    given: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Return the noise maps that a batch begins with, each (N, 1, h, w).

    Args:
        generator: What draws.
        targets: The images.
        kind: ``stored`` or ``random``.
        seed: Of random ones.
        given: Maps to take instead, each (1 or N, 1, h, w).

    Raises:
        UserError: If given maps do not fit the generator.
    """
    like, count, shapes = generator.w_avg, len(targets), list(generator.noise_shapes)
    if given is not None:
        if [tuple(map_.shape[-2:]) for map_ in given] != shapes:
            raise UserError(
                f"noise: maps of {[tuple(map_.shape[-2:]) for map_ in given]}; this generator takes {shapes}"
            )
        return [map_.to(like).expand(count, -1, -1, -1).clone() for map_ in given]
    if kind == "stored":
        return [map_.to(like).expand(count, -1, -1, -1).clone() for map_ in generator.noise_maps()]
    return [
        torch.stack([normal((1, *shape), seed, name, "noise", level) for name in targets.names]).to(like)
        for level, shape in enumerate(shapes)
    ]


def _first(label: Tensor | None, number: int) -> Tensor | None:
    return None if label is None else label[:number]
