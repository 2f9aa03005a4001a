"""Distances against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.losses.reconstruction import l1_loss


def test_distances_are_means_over_all_elements() -> None:
    fake, real = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, -2.0]], [[0.0, 3.0]]]])
    assert l1_loss(fake, real).item() == pytest.approx(6 / 4)
    assert l1_loss(fake.double(), real.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(dtype: torch.dtype) -> None:
    fake, real = torch.rand(1, 3, 64, 64).to(dtype), torch.rand(1, 3, 64, 64).to(dtype)
    assert l1_loss(fake, real).dtype == torch.float32
    assert l1_loss(fake, real).item() == pytest.approx(l1_loss(fake.double(), real.double()).item(), rel=1e-5)
