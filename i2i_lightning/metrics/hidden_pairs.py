"""What hidden pairs tell of an unpaired translation: is it this face still, and is the background left alone?

Both compare 8-bit RGB pictures, uint8 ``(N, 3, H, W)``, in levels of 255.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_CANDIDATES = 10


def partner_ranks(outputs: Tensor, partners: Tensor, num_candidates: int = NUM_CANDIDATES) -> Tensor:
    """Return the rank of each output's hidden partner among candidates, 1 for the nearest.

    The candidates of output i are its partner and the partners of the next ``num_candidates - 1`` images,
    counted in a circle; the distance is the mean absolute difference of the pixels. By chance the rank is
    ``(num_candidates + 1) / 2`` on average, and 1 for one in ``num_candidates``.

    Args:
        outputs: Translations, ``(N, 3, H, W)``.
        partners: What each should look like, the same shape.
        num_candidates: At most N.

    Returns:
        Long ``(N,)``, 1 to ``num_candidates``; of equal distances the partner's counts as the larger.
    """
    count = min(num_candidates, len(outputs))
    distances = torch.stack(
        [_difference(outputs, partners.roll(-shift, 0)).flatten(1).mean(1) for shift in range(count)]
    )
    return 1 + (distances[1:] <= distances[0]).sum(0)


def change_outside(pictures: Tensor, sources: Tensor, inside: Tensor) -> Tensor:
    """Return how much each picture differs from its source outside of a mask, in levels of 255.

    Args:
        pictures: ``(N, 3, H, W)``.
        sources: The same shape.
        inside: Bool ``(N, H, W)``: what may change.

    Returns:
        ``(N,)``; NaN for a picture that has nothing outside.
    """
    changed = _difference(pictures, sources).mean(1)
    outside = ~inside
    return (changed * outside).sum((1, 2)) / outside.sum((1, 2))


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.to(a.device).float()).abs()
