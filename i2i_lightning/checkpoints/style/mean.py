"""The mean latent of a generator whose file has none."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.checkpoints.style.values import Refused
from i2i_lightning.networks.style import StyleMapping

MEAN_SAMPLES = 10_000
MEAN_SEED = 123
MAX_LATENT = 1024
"""Length of z and of w, twice that of the published ones; so many draws of longer ones fill the memory."""


@torch.no_grad()
def mean_latent(mapping: StyleMapping, z_dim: int) -> Tensor:
    """Return the mean w ``(w_dim,)`` of :data:`MEAN_SAMPLES` draws of z from N(0, 1) with a fixed seed.

    In float64 and rounded once: in float32 the last digits, and with them a fingerprint of the generator,
    would differ from one processor to the next.

    Args:
        mapping: The mapping of an unconditional generator, on the CPU.
        z_dim: Length of z.

    Raises:
        Refused: If z or w is longer than :data:`MAX_LATENT`.
    """
    if (longest := max(z_dim, mapping.w_avg.numel())) > MAX_LATENT:
        raise Refused(
            "it lacks the mean latent, which is computed for latents of up to "
            f"{MAX_LATENT} numbers, not {longest}"
        )
    z = np.random.RandomState(MEAN_SEED).standard_normal((MEAN_SAMPLES, z_dim))
    w: Tensor = copy.deepcopy(mapping).double().to_w(torch.from_numpy(z))
    return w.mean(0).float()
