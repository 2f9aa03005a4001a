"""The Frechet distance between two sets of features: FID, where the features are Inception's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from i2i_lightning.metrics.kernel import check_features


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the squared Frechet distance between the Gaussians fitted to two sets of features.

    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` (Heusel et al. 2017, equation 6), with sample
    covariances (n - 1), in float64 on the CPU, so that the figure does not depend on the accelerator.

    The root of the d x d product is never formed. With centred features X, n x d, ``S = X'X / (n - 1)``, and
    the eigenvalues of ``S_a S_b`` are the squared singular values of ``X_a X_b' / sqrt((n_a - 1)(n_b - 1))``:
    the trace of the root is their plain sum. That matrix is n_a x n_b, a few hundred for most test sets where
    d = 2048; nothing has to be regularised although the covariances are singular then. Of more than d
    features, the R of a QR decomposition stands in for X.

    The estimate is biased upwards for small sets (Binkowski et al. 2018): compare figures of equal n only,
    and below 2048 images rather by the kernel distance.

    Args:
        features_a: ``(N, D)``, at least 2 of them.
        features_b: ``(M, D)``.

    Returns:
        The distance, at least 0 up to rounding.

    Raises:
        ValueError: If there are fewer than 2 features in a set, or their lengths differ.

    >>> a = torch.tensor([[0.0], [2.0]])
    >>> frechet_distance(a, a + 3)
    9.0
    """
    a, b = check_features(features_a, features_b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = _covariance_root(a - mean_a), _covariance_root(b - mean_b)
    trace = root_a.square().sum() + root_b.square().sum()
    trace_of_root = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return float((mean_a - mean_b).square().sum() + trace - 2 * trace_of_root)


def _covariance_root(centred: Tensor) -> Tensor:
    """Return a matrix R of at most D rows with ``R'R`` the sample covariance of centred features."""
    n, d = centred.shape
    root: Tensor = torch.linalg.qr(centred, mode="r").R if n > d else centred
    return root / math.sqrt(n - 1)
