"""Discriminators against their published layers, and their receptive fields as the gradient sees them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from i2i_lightning.networks.layers import SpectralConv2d
from i2i_lightning.networks.patchgan import PatchGAN, PixelGAN
from i2i_lightning.types import UserError


def published_70(in_channels: int, base: int, make_norm: type[nn.Module], bias: bool) -> nn.Sequential:
    """C64-C128-C256-C512 and a convolution to one channel (section 6.1.2)."""
    return nn.Sequential(
        *[nn.Conv2d(in_channels, base, 4, 2, 1), nn.LeakyReLU(0.2)],
        *[nn.Conv2d(base, 2 * base, 4, 2, 1, bias=bias), make_norm(2 * base), nn.LeakyReLU(0.2)],
        *[nn.Conv2d(2 * base, 4 * base, 4, 2, 1, bias=bias), make_norm(4 * base), nn.LeakyReLU(0.2)],
        *[nn.Conv2d(4 * base, 8 * base, 4, 1, 1, bias=bias), make_norm(8 * base), nn.LeakyReLU(0.2)],
        nn.Conv2d(8 * base, 1, 4, 1, 1),
    )


def pair_up(ours: nn.Module, theirs: nn.Module) -> None:
    source, target = ours.state_dict(), theirs.state_dict()
    assert [v.shape for v in source.values()] == [v.shape for v in target.values()]
    theirs.load_state_dict(dict(zip(target, source.values(), strict=True)))


@pytest.mark.parametrize(("norm", "make_norm"), [("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d)])
def test_patchgan_equals_the_published_layers(norm: str, make_norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    ours = PatchGAN(6, 4, norm=norm, init_gain=0.3).double()  # type: ignore[arg-type]
    theirs = published_70(6, 4, make_norm, norm == "instance").double()
    pair_up(ours, theirs)
    x = torch.randn(2, 6, 48, 56, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_pixelgan_equals_the_published_layers() -> None:
    torch.manual_seed(0)
    ours = PixelGAN(6, init_gain=0.3).double()
    theirs = nn.Sequential(
        *[nn.Conv2d(6, 64, 1), nn.LeakyReLU(0.2)],
        *[nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2)],
        nn.Conv2d(128, 1, 1, bias=False),
    ).double()
    pair_up(ours, theirs)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    assert sum(p.numel() for p in ours.parameters()) == 9_024


@pytest.mark.parametrize(("in_channels", "parameters"), [(6, 2_768_705), (3, 2_765_633)])
def test_parameter_counts_are_the_published_ones(in_channels: int, parameters: int) -> None:
    with torch.device("meta"):
        discriminator = PatchGAN(in_channels)
        assert discriminator(torch.zeros(1, in_channels, 256, 256)).shape == (1, 1, 30, 30)
    assert sum(p.numel() for p in discriminator.parameters()) == parameters


@pytest.mark.parametrize(("num_layers", "field_px"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field_is_where_the_gradient_reaches(num_layers: int, field_px: int) -> None:
    torch.manual_seed(0)
    # No norm: instance and batch statistics would let every pixel reach every output.
    discriminator = PatchGAN(3, 2, num_layers=num_layers, norm="none", init_gain=1.0).double()
    size = field_px + 4 * 2**num_layers
    x = torch.randn(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    logits = discriminator(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert x.grad is not None
    reached = x.grad[0].abs().sum(0) > 0
    rows, columns = reached.any(1).nonzero(), reached.any(0).nonzero()
    assert (rows.max() - rows.min() + 1).item() == field_px == discriminator.receptive_field_px
    assert (columns.max() - columns.min() + 1).item() == field_px


def test_pixelgan_sees_one_pixel() -> None:
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    PixelGAN(3, norm="none", init_gain=1.0)(x)[0, 0, 2, 1].backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).nonzero().tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_smallest_size_leaves_one_output_for_one_image(num_layers: int, norm: str) -> None:
    discriminator = PatchGAN(3, 2, num_layers=num_layers, norm=norm)  # type: ignore[arg-type]
    least = discriminator.min_px
    assert discriminator(torch.zeros(1, 3, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(UserError, match=f"at least {least} px, got {least}x{least - 1}"):
        discriminator(torch.zeros(1, 3, least, least - 1))


def test_wrong_options_and_channels_are_refused() -> None:
    with pytest.raises(UserError, match="num_layers=0"):
        PatchGAN(3, num_layers=0)
    with pytest.raises(UserError, match=r"\(N, 6, H, W\), got \(1, 3, 32, 32\)"):
        PatchGAN(6, 2)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="at least 2 px"):
        PixelGAN(3)(torch.zeros(1, 3, 1, 8))


def test_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    for discriminator in (PatchGAN(3, 4, norm="none", spectral_norm=True), PixelGAN(3, spectral_norm=True)):
        convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
        assert all(isinstance(m, SpectralConv2d) for m in convolutions)
        for _ in range(30):
            discriminator(torch.randn(1, 3, 32, 32))
        for m in convolutions:
            assert isinstance(m, SpectralConv2d)
            sigma = torch.dot(m.u, m.weight.flatten(1) @ m.v)
            largest = torch.linalg.svdvals((m.weight / sigma).detach().flatten(1))[0]
            assert largest.item() == pytest.approx(1.0, rel=0.02)
