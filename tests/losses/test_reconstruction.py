"""Distances against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.losses.reconstruction import l1_loss, masked_mse


def test_distances_are_means_over_all_elements() -> None:
    fake, real = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, -2.0]], [[0.0, 3.0]]]])
    assert l1_loss(fake, real).item() == pytest.approx(6 / 4)
    assert l1_loss(fake.double(), real.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(dtype: torch.dtype) -> None:
    fake, real = torch.rand(1, 3, 64, 64).to(dtype), torch.rand(1, 3, 64, 64).to(dtype)
    assert l1_loss(fake, real).dtype == torch.float32
    assert l1_loss(fake, real).item() == pytest.approx(l1_loss(fake.double(), real.double()).item(), rel=1e-5)


def test_masked_errors_are_divided_by_all_scalars_of_an_image() -> None:
    fake = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 2.0]]]])  # (2, 2, 1, 2)
    real = torch.zeros(1, 2, 1, 2)
    assert masked_mse(fake, real).tolist() == pytest.approx([30 / 4, 4 / 4])
    mask = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.5]]]])
    assert masked_mse(fake, real.expand(2, -1, -1, -1), mask).tolist() == pytest.approx([10 / 4, 1 / 4])
    assert masked_mse(fake, real, mask[:1]).tolist() == pytest.approx([10 / 4, 0])


def test_masked_errors_of_a_batch_are_those_of_its_images() -> None:
    torch.manual_seed(0)
    fake, real = torch.rand(3, 3, 8, 8, dtype=torch.float64), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    fake.requires_grad_()
    mask = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    together = masked_mse(fake, real, mask)
    for number in range(3):
        part = slice(number, number + 1)
        expected = (mask[number] * (fake[number] - real[number])).square().sum() / (3 * 8 * 8)
        torch.testing.assert_close(masked_mse(fake[part], real[part], mask[part])[0], expected)
        torch.testing.assert_close(together[number], expected)
    together[1].backward()
    assert fake.grad is not None
    assert fake.grad[1].abs().max() > 0
    assert not fake.grad[[0, 2]].any()


def test_masked_errors_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        masked_mse(torch.zeros(3, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="cannot be compared"):
        masked_mse(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"mask of shape \(1, 1, 4, 4\) for images of \(1, 3, 8, 8\)"):
        masked_mse(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 4, 4))
