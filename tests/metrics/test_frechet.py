from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

import i2i_lightning.metrics.frechet as frechet
from i2i_lightning.metrics.frechet import frechet_distance


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = np.random.default_rng(seed)
    mixed = np.abs(rng.normal(shift, 1, (n, d)) @ rng.normal(0, 1 / d**0.5, (d, d)))  # correlated, like pool3
    return torch.from_numpy(mixed.astype(np.float32))


def by_sqrtm(a: Tensor, b: Tensor) -> float:
    """Heusel et al. 2017 as it is usually written: covariances, and the root of their product."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(cov_x @ cov_y)
    mean = x.mean(0) - y.mean(0)
    return float(mean @ mean + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root).real)


def by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """The same by the eigenvalues of the product, which is defined for singular covariances too."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(cov_x @ cov_y).astype(complex)).real
    mean = x.mean(0) - y.mean(0)
    return float(mean @ mean + np.trace(cov_x) + np.trace(cov_y) - 2 * roots.sum())


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 16), (400, 300, 64), (65, 500, 64)])
def test_equals_the_matrix_root_where_covariances_are_regular(n: int, m: int, d: int) -> None:
    a, b = features(n, d, 0), features(m, d, 1, 0.3)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 64), (30, 200, 64), (106, 106, 256)])
def test_equals_the_matrix_root_where_covariances_are_singular(n: int, m: int, d: int) -> None:
    a, b = features(n, d, 0), features(m, d, 1, 0.3)
    assert frechet_distance(a, b) == pytest.approx(by_eigenvalues(a, b), abs=1e-4)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), abs=1e-4)


def test_features_of_inceptions_size_and_scale() -> None:
    """106 features of 2048 numbers: a tenth of a second instead of the root of a 2048 x 2048 matrix."""
    rng = np.random.default_rng(0)
    low = rng.gamma(0.5, 0.8, (212, 40)) @ np.abs(rng.normal(0, 0.2, (40, 2048)))
    values = torch.from_numpy((low + rng.gamma(0.5, 0.1, (212, 2048))).astype(np.float32))
    a, b = values[:106], values[106:] * 1.1
    # Exact in the common space of both sets, where the covariances are small matrices.
    basis = np.linalg.qr(values.double().numpy().T)[0]
    a_there, b_there = (torch.from_numpy(x.double().numpy() @ basis) for x in (a, b))
    assert frechet_distance(a, b) == pytest.approx(by_eigenvalues(a_there, b_there), abs=1e-4)


def test_torchmetrics_agrees() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")

    class Flat(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Any:
            return images.flatten(1).double()

    generator = torch.Generator().manual_seed(0)
    real, fake = (
        torch.randint(0, most, (50, 3, 2, 2), generator=generator, dtype=torch.uint8) for most in (256, 180)
    )
    theirs = image.FrechetInceptionDistance(Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(Flat()(real), Flat()(fake))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-8)


def test_equal_sets_and_shifted_sets() -> None:
    a = features(20, 32, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 32, rel=1e-6)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)


def test_errors_name_the_shapes() -> None:
    with pytest.raises(ValueError, match=r"1 and 5 features: a spread needs at least 2"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 4\)"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))


def test_doctests() -> None:
    assert doctest.testmod(frechet).failed == 0
