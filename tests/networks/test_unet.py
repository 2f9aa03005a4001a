"""The U-Net against the published architecture, written out here as nested levels around a bottleneck."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.networks.unet import DropoutPlacement, UNet
from i2i_lightning.types import UserError


class Level(nn.Module):
    """One level of the nested formulation: down, whatever is inside, up; beside it its own input."""

    def __init__(
        self,
        outer: int,
        inner: int,
        inside: Level | None,
        bias: bool,
        make_norm: type[nn.Module],
        channels: int,
    ) -> None:
        super().__init__()
        outermost = channels > 0
        self.outermost, self.inside = outermost, inside
        out = channels if outermost else outer
        self.down = nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)
        self.down_norm = None if outermost or inside is None else make_norm(inner)
        width = inner if inside is None else 2 * inner
        self.up = nn.ConvTranspose2d(width, out, 4, 2, 1, bias=bias or outermost)
        self.up_norm = None if outermost else make_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x if self.outermost else torch.where(x > 0, x, 0.2 * x))
        h = h if self.down_norm is None else self.down_norm(h)
        h = h if self.inside is None else self.inside(h)
        h = self.up(h.clamp(min=0))
        if self.outermost:
            return h.tanh()
        assert self.up_norm is not None
        return torch.cat([x, self.up_norm(h)], 1)


def nested(unet: UNet, in_channels: int, make_norm: type[nn.Module], bias: bool) -> tuple[Level, list[Level]]:
    """Build the nested network around the weights of ``unet``; return its levels, outermost first, too."""
    widths = [down.conv.out_channels for down in unet.encoder]
    level: Level | None = None
    levels: list[Level] = []
    for depth in reversed(range(len(widths))):
        outer = widths[depth - 1] if depth else in_channels
        level = Level(outer, widths[depth], level, bias, make_norm, 0 if depth else unet.out_channels)
        levels.insert(0, level)
    for depth, made in enumerate(levels):
        down, up = unet.encoder[depth], unet.decoder[len(widths) - 1 - depth]
        made.down.load_state_dict(down.conv.state_dict())
        made.up.load_state_dict(up.conv.state_dict())
        for norm, ours in ((made.down_norm, down.norm), (made.up_norm, up.norm)):
            if norm is not None:
                norm.load_state_dict(ours.state_dict())
    assert level is not None
    return level, levels


@pytest.mark.parametrize(("norm", "make_norm"), [("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d)])
def test_outputs_and_gradients_equal_the_nested_formulation(norm: str, make_norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    unet = UNet(3, 2, num_downs=6, base_channels=4, norm=norm, dropout="none", init_gain=0.3).double()
    reference, levels = nested(unet, 3, make_norm, bias=norm == "instance")
    reference.double()
    x = torch.randn(2, 3, 64, 128, dtype=torch.float64)
    ours, theirs = unet(x), reference(x)
    assert ours.shape == (2, 2, 64, 128)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)

    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for depth, level in enumerate(levels):
        torch.testing.assert_close(
            unet.encoder[depth].conv.weight.grad, level.down.weight.grad, rtol=1e-9, atol=1e-11
        )
        torch.testing.assert_close(
            unet.decoder[5 - depth].conv.weight.grad, level.up.weight.grad, rtol=1e-9, atol=1e-11
        )
    expected = [n for n, _ in reference.named_parameters()]
    assert len(expected) == len(list(unet.parameters()))

    unet.eval()
    reference.eval()
    torch.testing.assert_close(unet(x), reference(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("num_downs", "parameters"), [(7, 41_828_995), (8, 54_413_955)])
def test_parameter_counts_are_the_published_ones(num_downs: int, parameters: int) -> None:
    with torch.device("meta"):
        unet = UNet(3, 3, num_downs=num_downs)
    assert sum(p.numel() for p in unet.parameters()) == parameters


@pytest.mark.parametrize(("num_downs", "fewer"), [(7, 11_144_192), (8, 15_338_496)])
def test_an_encoder_decoder_is_the_same_without_what_the_skips_add(num_downs: int, fewer: int) -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in UNet(3, 3, num_downs=num_downs, skips=skips).parameters())
            for skips in (True, False)
        ]
    # Each decoder layer but the innermost read as many channels again: 4x4 weights to each of its outputs.
    widths = [64 * min(2**level, 8) for level in range(num_downs)]
    read = sum(16 * widths[level] * ([3, *widths][level]) for level in range(num_downs - 1))
    assert counts[0] - counts[1] == read == fewer


def test_without_skips_everything_passes_the_bottleneck() -> None:
    torch.manual_seed(0)
    unet = UNet(3, 3, num_downs=2, base_channels=4, norm="none", dropout="none", skips=False).eval()
    with torch.no_grad():
        unet.encoder[-1].conv.weight.zero_()
        first, second = unet(torch.randn(2, 3, 8, 8))
    assert torch.equal(first, second)


@pytest.mark.parametrize("num_downs", [2, 3, 4, 6, 9])
def test_any_depth_runs_at_its_smallest_size(num_downs: int) -> None:
    unet = UNet(1, 3, num_downs=num_downs, base_channels=2)
    assert unet.size_multiple == 2**num_downs
    # One image: no norm may stand where a single pixel is left.
    out = unet(torch.zeros(1, 1, unet.size_multiple, unet.size_multiple))
    assert out.shape == (1, 3, unet.size_multiple, unet.size_multiple)


def test_512_px_builds_with_nine_halvings_or_with_eight() -> None:
    with torch.device("meta"):
        x = torch.zeros(1, 3, 512, 512)
        assert UNet(3, 3, num_downs=9)(x).shape == UNet(3, 3, num_downs=8)(x).shape == x.shape


@pytest.mark.parametrize(
    ("placement", "num_downs", "numbers"),
    [
        ("reference", 8, [2, 3, 4]),
        ("reference", 7, [2, 3]),
        ("reference", 6, [2]),
        ("reference", 5, []),
        ("paper", 8, [1, 2, 3]),
        ("paper", 7, [1, 2, 3]),
        ("paper", 2, [1]),
        ("none", 8, []),
    ],
)
def test_dropout_stands_where_it_is_put(
    placement: DropoutPlacement, num_downs: int, numbers: list[int]
) -> None:
    unet = UNet(3, 3, num_downs=num_downs, base_channels=2, dropout=placement)
    seen: list[int] = []
    for number, up in enumerate(unet.decoder, start=1):

        def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor, number: int = number) -> None:
            if number < num_downs and (output == 0).float().mean() > 0.2:
                seen.append(number)

        up.register_forward_hook(note)
    x = torch.randn(4, 3, 2**num_downs, 2**num_downs)
    unet(x)
    assert seen == numbers
    seen.clear()
    unet.eval()(x)
    assert seen == []


def test_explicit_z_enters_as_constant_planes() -> None:
    torch.manual_seed(0)
    unet = UNet(3, 3, num_downs=2, base_channels=4, dropout="none", z_channels=5).double()
    plain = UNet(8, 3, num_downs=2, base_channels=4, dropout="none").double()
    plain.load_state_dict(unet.state_dict())
    x, z = torch.randn(2, 3, 8, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    planes = z.view(2, 5, 1, 1) * torch.ones(1, 1, 8, 4, dtype=torch.float64)
    torch.testing.assert_close(unet(x, z), plain(torch.cat([x, planes], 1)), rtol=0, atol=0)
    for wrong in (None, z[:1], z[:, :4]):
        with pytest.raises(ValueError, match="z_channels=5"):
            unet(x, wrong)
    with pytest.raises(ValueError, match="z_channels=0"):
        plain(torch.zeros(2, 8, 4, 4), z)


def test_size_error_names_the_size_the_multiple_and_a_depth_that_fits() -> None:
    unet = UNet(3, 3, num_downs=5, base_channels=2)
    with pytest.raises(UserError) as caught:
        unet(torch.zeros(1, 3, 96, 40))
    message = str(caught.value)
    for part in ("multiples of 32 px", "got 96x40", "num_downs to at most 3"):
        assert part in message
    assert message.count("\n") <= 2
    with pytest.raises(UserError, match="multiples of 32"):
        unet.check_size(33, 32)
    unet.check_size(64, 96)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="num_downs=1"):
        UNet(3, 3, num_downs=1)
    with pytest.raises(UserError, match="dropout=papper: choose one of reference, paper, none"):
        UNet(3, 3, dropout="papper")
    with pytest.raises(UserError, match=r"\(N, 3, H, W\), got \(1, 4, 8, 8\)"):
        UNet(3, 3, num_downs=2, base_channels=2)(torch.zeros(1, 4, 8, 8))


def test_forward_leaves_its_input_as_it_was() -> None:
    x = torch.randn(1, 3, 8, 8)
    before = x.clone()
    UNet(3, 3, num_downs=2, base_channels=2)(x)
    assert torch.equal(x, before)


def test_half_precision_runs_under_autocast() -> None:
    torch.manual_seed(0)
    unet = UNet(3, 3, num_downs=3, base_channels=4, norm="instance", dropout="none", init_gain=0.2)
    x = torch.randn(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = unet(x)
    torch.testing.assert_close(half.float(), unet(x), rtol=0, atol=0.1)
