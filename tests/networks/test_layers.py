"""Norms, spectral normalisation and initial weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.networks.init import init_weights
from i2i_lightning.networks.layers import InstanceNorm2d, SpectralConv2d, norm_layer
from i2i_lightning.networks.sync_batchnorm import SyncBatchNorm2d
from i2i_lightning.types import UserError


def instance_norm(x: Tensor) -> Tensor:
    """The equation, in float64."""
    x = x.double()
    mean = x.mean((2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_instance_norm_equals_its_equation() -> None:
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64) * 4 + 2
    torch.testing.assert_close(InstanceNorm2d(3)(x), instance_norm(x), rtol=1e-12, atol=1e-12)
    assert not InstanceNorm2d(3).state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_instance_norm_keeps_its_statistics_in_float32(dtype: torch.dtype) -> None:
    # Squares of these overflow fp16, and in bf16 a sum of 4096 such terms keeps no digit of the spread.
    x = (torch.randn(2, 3, 64, 64) * 3 + 1000).to(dtype)
    y = InstanceNorm2d(3)(x)
    assert y.dtype == dtype
    # One rounding of the result is allowed: half a unit in the last place of values up to 4.
    torch.testing.assert_close(y.double(), instance_norm(x), rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_instance_norm_stays_in_float32_under_autocast() -> None:
    x = torch.randn(1, 2, 8, 8) * 3 + 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = InstanceNorm2d(2)(x)
    torch.testing.assert_close(y.double(), instance_norm(x), rtol=0, atol=1e-3)


def test_norm_layer_makes_each_kind_and_lists_them_in_its_error() -> None:
    assert isinstance(norm_layer("batch")(4), nn.BatchNorm2d)
    assert isinstance(norm_layer("instance")(4), nn.InstanceNorm2d)
    assert isinstance(norm_layer("syncbatch")(4), SyncBatchNorm2d)
    assert isinstance(norm_layer("none")(4), nn.Identity)
    with pytest.raises(UserError, match="norm=bach: choose one of batch, instance, syncbatch, none"):
        norm_layer("bach")


def test_spectral_convolution_has_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(5, 8, 4, stride=2, padding=1).double()
    conv.iterate(500)
    weight = conv.weight.detach()
    largest = torch.linalg.svdvals(weight.flatten(1))[0]
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    expected = nn.functional.conv2d(x, weight / largest, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-9, atol=1e-9)


def test_spectral_convolution_has_the_gradient_of_the_quotient() -> None:
    """With u and v held fixed, as the paper's algorithm 1 does."""
    torch.manual_seed(0)
    conv = SpectralConv2d(2, 3, 3).double().eval()
    weight = conv.weight.detach().clone().requires_grad_()
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    sigma = conv.u @ weight.flatten(1) @ conv.v
    nn.functional.conv2d(x, weight / sigma, conv.bias).square().sum().backward()
    conv(x).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, weight.grad, rtol=1e-12, atol=1e-12)


def test_spectral_convolution_iterates_in_training_only_and_survives_two_forwards() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    conv.eval()
    before = conv.u.clone()
    conv(x)
    assert torch.equal(conv.u, before)
    conv.train()
    (conv(x).sum() + conv(2 * x).square().sum()).backward()
    assert not torch.equal(conv.u, before)
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()
    assert set(conv.state_dict()) == {"weight", "bias", "u", "v"}
    assert torch.equal(copy.deepcopy(conv).u, conv.u)


def test_spectral_convolution_measures_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(16, 32, 4).eval()
    x = torch.randn(1, 16, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), conv(x), rtol=0.02, atol=0.02)


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(64, 128, 4), nn.BatchNorm2d(4096), nn.ConvTranspose2d(32, 128, 4), SyncBatchNorm2d(4096)
    )


def test_normal_init_has_the_published_statistics(layers: nn.Sequential) -> None:
    init_weights(layers)
    for conv in (layers[0], layers[2]):
        assert conv.weight.mean().abs() < 5 * 0.02 / conv.weight.numel() ** 0.5
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not conv.bias.any()
    for norm in (layers[1], layers[3]):
        assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.002)
        assert norm.weight.std().item() == pytest.approx(0.02, rel=0.06)
        assert not norm.bias.any()


def test_xavier_and_kaiming_init_have_the_variance_of_their_fans(layers: nn.Sequential) -> None:
    conv = layers[0]
    fan_in, fan_out = 64 * 16, 128 * 16
    init_weights(layers, "xavier", gain=0.02)
    assert conv.weight.std().item() == pytest.approx(0.02 * (2 / (fan_in + fan_out)) ** 0.5, rel=0.02)
    init_weights(layers, "kaiming", gain=0.02)
    assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


def test_orthogonal_init_has_orthonormal_rows_times_gain(layers: nn.Sequential) -> None:
    init_weights(layers, "orthogonal", gain=0.5)
    rows = layers[0].weight.flatten(1)
    torch.testing.assert_close(rows @ rows.t(), 0.25 * torch.eye(128), rtol=0, atol=1e-5)


def test_init_refits_spectral_vectors_and_lists_its_kinds() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(8, 8, 3)
    init_weights(conv)
    sigma = torch.dot(conv.u, conv.weight.flatten(1) @ conv.v)
    assert sigma.item() == pytest.approx(torch.linalg.svdvals(conv.weight.flatten(1))[0].item(), rel=0.02)
    with pytest.raises(UserError, match="init=gauss: choose one of normal"):
        init_weights(conv, "gauss")
