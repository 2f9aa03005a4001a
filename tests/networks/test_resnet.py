"""The residual generator against the published one, written out here as one list of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.types import UserError


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def published(
    num_blocks: int, base: int, make_norm: type[nn.Module], bias: bool, resize: bool
) -> nn.Sequential:
    """c7s1-k, d2k, d4k, R4k..., u2k, uk, c7s1-3, in the paper's notation (section 7.2)."""

    def up(channels: int) -> list[nn.Module]:
        if resize:
            nearest = nn.Upsample(scale_factor=2, mode="nearest")
            return [nearest, nn.ReflectionPad2d(1), nn.Conv2d(channels, channels // 2, 3, bias=bias)]
        return [nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1, bias=bias)]

    def block(channels: int) -> Residual:
        return Residual(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(channels),
        )

    return nn.Sequential(
        *[nn.ReflectionPad2d(3), nn.Conv2d(3, base, 7, bias=bias), make_norm(base), nn.ReLU()],
        *[nn.Conv2d(base, 2 * base, 3, 2, 1, bias=bias), make_norm(2 * base), nn.ReLU()],
        *[nn.Conv2d(2 * base, 4 * base, 3, 2, 1, bias=bias), make_norm(4 * base), nn.ReLU()],
        *[block(4 * base) for _ in range(num_blocks)],
        *[*up(4 * base), make_norm(2 * base), nn.ReLU()],
        *[*up(2 * base), make_norm(base), nn.ReLU()],
        *[nn.ReflectionPad2d(3), nn.Conv2d(base, 3, 7), nn.Tanh()],
    )


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
@pytest.mark.parametrize(("norm", "make_norm"), [("instance", nn.InstanceNorm2d), ("batch", nn.BatchNorm2d)])
def test_output_equals_the_published_layers(upsample: str, norm: str, make_norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    generator = ResNetGenerator(3, 3, 4, num_blocks=2, norm=norm, upsample=upsample, init_gain=0.3).double()  # type: ignore[arg-type]
    reference = published(2, 4, make_norm, norm == "instance", upsample == "resize").double()
    # The two list their parameters in the same order, so the tensors pair up.
    ours, theirs = generator.state_dict(), reference.state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    reference.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    out = generator(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, reference(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num_blocks", "parameters"), [(6, 7_837_699), (9, 11_378_179)])
def test_parameter_counts_are_the_published_ones(num_blocks: int, parameters: int) -> None:
    with torch.device("meta"):
        transposed = ResNetGenerator(3, 3, num_blocks=num_blocks)
        resized = ResNetGenerator(3, 3, num_blocks=num_blocks, upsample="resize")
    for generator in (transposed, resized):
        assert sum(p.numel() for p in generator.parameters()) == parameters


def test_dropout_is_in_every_block_and_only_in_training() -> None:
    torch.manual_seed(0)
    generator = ResNetGenerator(3, 3, 2, num_blocks=3, dropout=True)
    assert sum(isinstance(module, nn.Dropout) for module in generator.modules()) == 3
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(generator(x), generator(x))
    generator.eval()
    assert torch.equal(generator(x), generator(x))


def test_wrong_sizes_and_options_are_refused() -> None:
    generator = ResNetGenerator(3, 3, 2, num_blocks=1)
    assert generator.size_multiple == 4
    with pytest.raises(UserError, match="multiples of 4 px, got 30x32"):
        generator(torch.zeros(1, 3, 30, 32))
    with pytest.raises(UserError, match="at least 8 px, got 4x8"):
        generator(torch.zeros(1, 3, 4, 8))
    with pytest.raises(UserError, match="upsample=bilinear: choose one of transpose, resize"):
        ResNetGenerator(3, 3, upsample="bilinear")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\(N, 3, H, W\)"):
        generator(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UserError, match="num_blocks=-1"):
        ResNetGenerator(3, 3, num_blocks=-1)
