"""The kernel distance between two sets of features: KID, where the features are Inception's."""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_distance(
    features_a: Tensor, features_b: Tensor, subset_size: int = 50, num_subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy of two sets of features, and its deviation over subsets.

    The kernel is ``k(x, y) = (x.y / d + 1)^3`` (Binkowski et al. 2018, section 4). From each set
    ``subset_size`` features are drawn without repetition and the unbiased estimate is taken, ``num_subsets``
    times; subsets larger than the smaller set are clipped to it. In float64 on the CPU.

    The mean is unbiased for any size of set or subset, which is why it suits small test sets; it may be
    negative where the sets are alike. The deviation is that of one subset: it grows as subsets shrink, so
    that figures compare at equal subset size only.

    Args:
        features_a: ``(N, D)``, at least 2 of them.
        features_b: ``(M, D)``.
        subset_size: Features drawn from each set, at least 2.
        num_subsets: How many times, at least 1.
        seed: Of the draw; equal seeds draw equal subsets of sets of equal size.

    Returns:
        Mean, and standard deviation over the subsets (population), as they are (papers often print 100 times
        as much).

    Raises:
        ValueError: If there are fewer than 2 features in a set, or their lengths differ.
    """
    a, b = check_features(features_a, features_b)
    size = clipped_subset_size(len(a), len(b), subset_size)
    generator = torch.Generator().manual_seed(seed)
    estimates = torch.stack(
        [
            _mmd2(
                a[torch.randperm(len(a), generator=generator)[:size]],
                b[torch.randperm(len(b), generator=generator)[:size]],
            )
            for _ in range(num_subsets)
        ]
    )
    return float(estimates.mean()), float(estimates.std(correction=0))


def clipped_subset_size(num_a: int, num_b: int, subset_size: int) -> int:
    """Return how many features a subset really has: no more than the smaller set."""
    return min(num_a, num_b, subset_size)


def check_features(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sets of features in float64 on the CPU, if a distance between them is defined.

    Raises:
        ValueError: If there are fewer than 2 features in a set, or their lengths differ.
    """
    shapes = tuple(features_a.shape), tuple(features_b.shape)
    if features_a.ndim != 2 or features_b.ndim != 2 or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features of shapes {shapes[0]} and {shapes[1]}: give (N, D) and (M, D)")
    if min(shapes[0][0], shapes[1][0]) < 2:
        raise ValueError(
            f"{shapes[0][0]} and {shapes[1][0]} features: a spread needs at least 2 images in each set"
        )
    return features_a.detach().cpu().double(), features_b.detach().cpu().double()


def _mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased MMD^2 of equally many features ``(m, D)`` (Gretton et al. 2012, equation 4)."""
    m = len(x)
    of_x, of_y, across = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = of_x.sum() - of_x.diagonal().sum() + of_y.sum() - of_y.diagonal().sum()
    return within / (m * (m - 1)) - 2 * across.mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
