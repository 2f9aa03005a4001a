"""What an inversion returns, and how it becomes a picture again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.networks.style import Noise, StyleGenerator


@dataclass
class Embedding:
    """Latents that were found for a batch of N images.

    Args:
        names: One per image.
        w_plus: (N, L, D).
        noise: Noise maps, each (N, 1, h, w); None where the generator's own were kept.
        image: What they render to, float (N, C, S, S).
        terms: The terms of the objective, unweighted, of ``image``, (N,) each.
        total: The last stage's weighted sum of them, (N,).
        steps: Steps that each image took, (N,).
        distance: Mean over rows of the distance from the mean latent, in units of the deviation of w, (N,).
        trace: At some steps: ``stage``, ``step``, ``images`` (indices), and a list over these for each term.
        tuned: For each image the generator's weights that were tuned for it, by name; None without.
        label: (N, K) for a conditional generator.
        notes: What was not done as asked, and why.
        settings: Stages, weights, start and seed, as plain containers.
    """

    names: list[str]
    w_plus: Tensor
    noise: list[Tensor] | None
    image: Tensor
    terms: dict[str, Tensor]
    total: Tensor
    steps: Tensor
    distance: Tensor
    trace: list[dict[str, Any]]
    tuned: list[dict[str, Tensor]] | None
    label: Tensor | None
    notes: list[str]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)


@torch.no_grad()
def render(
    generator: StyleGenerator,
    w_plus: Tensor,
    noise: Sequence[Tensor] | None = None,
    tuned: Sequence[Mapping[str, Tensor] | None] | None = None,
) -> Tensor:
    """Return the images of ``w_plus (N, L, D)``, one by one and in full precision.

    So does whoever renders a single latent from a file: in a batch, the last bits would be others.

    Args:
        generator: What draws.
        w_plus: Latents.
        noise: Maps, each (N, 1, h, w); None for the generator's own.
        tuned: Weights of the generator for each image, by name; None for the generator's own, for one or all.
    """
    images = []
    with torch.autocast(w_plus.device.type, enabled=False):
        for index in range(len(w_plus)):
            maps: Noise = "const" if noise is None else [map_[index : index + 1] for map_ in noise]
            own = None if tuned is None else tuned[index]
            images.append(generator.draw(w_plus[index : index + 1], maps, own))
    if not images:
        return w_plus.new_zeros(0, generator.channels, generator.size_px, generator.size_px)
    return torch.cat(images)
