from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from i2i_lightning.metrics.kernel import clipped_subset_size, kernel_distance


def features(n: int, seed: int, shift: float = 0.0, d: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, d)).astype(np.float32))


def by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """Binkowski et al. 2018, written out: no pair of an element with itself, all pairs across."""

    def k(p: np.ndarray, q: np.ndarray) -> float:
        return float((p @ q / len(p) + 1) ** 3)

    m, n = len(x), len(y)
    of_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    of_y = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return of_x + of_y - 2 * sum(k(p, q) for p in x for q in y) / (m * n)


def test_whole_sets_equal_the_written_out_sum() -> None:
    a, b = features(9, 0), features(9, 1, 0.5)
    mean, std = kernel_distance(a, b, subset_size=50, num_subsets=3)
    assert mean == pytest.approx(by_loops(a.double().numpy(), b.double().numpy()), rel=1e-10)
    assert std == pytest.approx(0, abs=1e-12)  # every subset is the whole set


def test_subsets_equal_written_out_sums_of_the_same_draw() -> None:
    a, b = features(12, 0), features(7, 1, 0.5)
    generator = torch.Generator().manual_seed(5)
    estimates = []
    for _ in range(4):
        x = a[torch.randperm(12, generator=generator)[:5]].double().numpy()
        y = b[torch.randperm(7, generator=generator)[:5]].double().numpy()
        estimates.append(by_loops(x, y))
    mean, std = kernel_distance(a, b, subset_size=5, num_subsets=4, seed=5)
    assert mean == pytest.approx(np.mean(estimates), rel=1e-10)
    assert std == pytest.approx(np.std(estimates), rel=1e-8)


def test_subsets_are_clipped_to_the_smaller_set() -> None:
    a, b = features(12, 0), features(7, 1)
    assert clipped_subset_size(12, 7, 50) == 7
    assert kernel_distance(a, b, 50, 5) == kernel_distance(a, b, 7, 5)


def test_the_mean_is_unbiased_whatever_the_subset() -> None:
    """Of equal distributions it is about 0, and of others about the same for small and large subsets."""
    mean, std = kernel_distance(features(400, 0), features(400, 1), 20, 200)
    assert abs(mean) < 3 * std / 200**0.5 + 0.02
    small, _ = kernel_distance(features(400, 0), features(400, 1, 0.7), 10, 400)
    large, _ = kernel_distance(features(400, 0), features(400, 1, 0.7), 200, 20)
    assert small == pytest.approx(large, rel=0.1)


def test_the_seed_draws_the_subsets() -> None:
    a, b = features(30, 0), features(30, 1)
    assert kernel_distance(a, b, 5, 5, seed=1) == kernel_distance(a, b, 5, 5, seed=1)
    assert kernel_distance(a, b, 5, 5, seed=1) != kernel_distance(a, b, 5, 5, seed=2)
    before = torch.get_rng_state()
    kernel_distance(a, b, 5, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchmetrics_agrees_on_one_subset() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = features(20, 0), features(20, 1, 0.5)
    theirs = kid.poly_mmd(a.double(), b.double())
    assert kernel_distance(a, b, 20, 1)[0] == pytest.approx(float(theirs), rel=1e-10)


def test_errors_name_the_shapes() -> None:
    with pytest.raises(ValueError, match="5 and 1 features"):
        kernel_distance(torch.zeros(5, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5,\)"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(5))
