"""Noise maps that stay noise while they are optimised (Karras et al. 2020, arXiv 1912.04958, appendix D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.losses.reconstruction import at_least_float32

SMALLEST_PX = 8
"""Maps are halved until they are this small."""


def noise_regularizer(noise: Sequence[Tensor]) -> Tensor:
    """Return how strongly neighbouring values of each image's noise maps are correlated, at every scale.

    Karras et al. 2020, appendix D: over all maps i, and each map's pyramid of halvings j down to 8 px,
    ``L_ij = E[n(x, y) n(x - 1, y)]^2 + E[n(x, y) n(x, y - 1)]^2``, borders wrapped, and the sum of all. The
    authors' text multiplies by 2 at each halving to keep the variance, their code does not; the weight of 1e5
    in both belongs to the code. This follows the code.

    Every image has its own sums. (Correlations averaged over a batch before they are squared almost vanish:
    for eight images they are a hundredth of one image's.) Maps and halved maps of one size are taken
    together, so that the number of operations grows with the number of sizes and not with that of levels.

    Args:
        noise: Maps ``(N, 1, h, w)``, one for each noise input; the same N for all.

    Returns:
        ``(N,)``, in float32 at least. Zero maps give zero.

    Raises:
        ValueError: If there is no map, or they are not of the same number of images.
    """
    if not noise or len({len(map_) for map_ in noise}) != 1:
        raise ValueError(f"noise maps for one number of images, not {[tuple(map_.shape) for map_ in noise]}")
    waiting: dict[tuple[int, int], list[Tensor]] = {}
    for map_ in noise:
        waiting.setdefault((map_.shape[2], map_.shape[3]), []).append(at_least_float32(map_))
    total = waiting[next(iter(waiting))][0].new_zeros(len(noise[0]))
    while waiting:
        # The largest first: nothing that comes later is halved to its size.
        height, width = size = max(waiting, key=lambda size: (size[0] * size[1], size))
        level = torch.cat(waiting.pop(size), 1)  # (N, maps, h, w)
        across = (level * level.roll(1, 3)).mean((2, 3))
        down = (level * level.roll(1, 2)).mean((2, 3))
        total = total + (across.square() + down.square()).sum(1)
        if min(height, width) > SMALLEST_PX:
            waiting.setdefault((height // 2, width // 2), []).append(F.avg_pool2d(level, 2))
    return total


@torch.no_grad()
def normalise_noise_(noise: Sequence[Tensor]) -> None:
    """Give each image's map mean 0 and root mean square 1 in place, as after every step of appendix D.

    Args:
        noise: Maps ``(N, 1, h, w)``. A map of one value, which has no noise in it, becomes 0.
    """
    for map_ in noise:
        map_ -= map_.mean((1, 2, 3), keepdim=True)
        power = map_.square().mean((1, 2, 3), keepdim=True)
        map_ *= power.clamp_min(torch.finfo(map_.dtype).tiny).rsqrt()
