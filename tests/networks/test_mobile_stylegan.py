"""MobileStyleGAN against its maths, written out plainly in float64: one image, one equation at a time.

Nothing in the reference imports a layer of the package: weights are a dictionary under our names, a
convolution is a sum over shifted pictures, and the wavelets are four 2 x 2 pictures.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from i2i_lightning.networks.mobile_stylegan import MobileStyleGAN, inverse_haar
from i2i_lightning.networks.style import build
from i2i_lightning.types import UserError

WIDTHS = [24, 16, 12, 6]
State = dict[str, Tensor]


def filled(generator: MobileStyleGAN, seed: int = 0) -> MobileStyleGAN:
    """As large as fresh weights, none exactly 0 or 1, in float64."""
    torch.manual_seed(seed)
    for parameter in generator.parameters():
        parameter.data = parameter.double() + 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    generator = generator.double()
    generator.mapping.w_avg.normal_()
    return generator.eval()


@pytest.fixture
def generator() -> MobileStyleGAN:
    torch.manual_seed(0)
    return filled(MobileStyleGAN(WIDTHS, channels=3, z_dim=10, w_dim=14, mapping_layers=3))


# -------------------- the reference


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def correlate(x: Tensor, weight: Tensor) -> Tensor:
    """out[o, y, x] = sum_{i, u, v} weight[o, i, u, v] x[i, y + u - pad, x + v - pad], zero outside."""
    pad = weight.shape[-1] // 2
    _, height, width = x.shape
    padded = x.new_zeros(x.shape[0], height + 2 * pad, width + 2 * pad)
    padded[:, pad : pad + height, pad : pad + width] = x
    out = x.new_zeros(weight.shape[0], height, width)
    for u in range(2 * pad + 1):
        for v in range(2 * pad + 1):
            out += torch.tensordot(weight[:, :, u, v], padded[:, u : u + height, v : v + width], 1)
    return out


def separable(x: Tensor, depthwise: Tensor, weight: Tensor) -> Tensor:
    """Both convolutions as the one dense 3x3 convolution that they are together."""
    return correlate(x, weight * depthwise[None, :, 0])


WAVELETS = torch.tensor(
    [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], dtype=torch.float64
)


def wavelet_sum(x: Tensor) -> Tensor:
    """(4C, H, W) to (C, 2H, 2W): each coefficient paints its picture into its own 2 x 2 pixels."""
    out = x.new_zeros(len(x) // 4, 2 * x.shape[1], 2 * x.shape[2])
    for c in range(len(out)):
        of_c = [x[c], *(x[len(out) + 3 * c + k] for k in range(3))]
        for dy in range(2):
            for dx in range(2):
                total = sum(WAVELETS[k, dy, dx] * of_c[k] for k in range(4))
                out[c, dy::2, dx::2] = 0.5 * total
    return out


def styled(x: Tensor, state: State, name: str, w: Tensor, scale: float) -> Tensor:
    styles = (state[f"{name}.weight"] @ w + state[f"{name}.bias"]) * scale
    return x * styles[:, None, None]


def layer(x: Tensor, state: State, name: str, w: Tensor, noise: Tensor | None) -> Tensor:
    x = styled(x, state, f"{name}.affine", w, 1 / math.sqrt(9 * len(x)))
    depthwise = state.get(f"{name}.depthwise")
    weight = state[f"{name}.weight"]
    x = correlate(x, weight) if depthwise is None else separable(x, depthwise, weight)
    if noise is not None:
        x = x + state[f"{name}.noise_strength"] * noise
    return leaky(x + state[f"{name}.bias"][:, None, None])


def reference(generator: MobileStyleGAN, rows: Tensor, noise: list[Tensor] | None) -> Tensor:
    """The image of one w_plus."""
    state = {key.removeprefix("synthesis."): value for key, value in generator.state_dict().items()}
    maps = iter(noise if noise is not None else [None] * 99)  # type: ignore[list-item]
    x = layer(state["b4.const"], state, "b4.conv1", rows[0], next(maps))
    for level in range(1, len(WIDTHS)):
        name = f"b{4 * 2**level}"
        x = wavelet_sum(styled(x, state, f"{name}.up", rows[2 * level - 1], 1))
        x = layer(x, state, f"{name}.conv0", rows[2 * level - 1], next(maps))
        x = layer(x, state, f"{name}.conv1", rows[2 * level], next(maps))
    x = styled(x, state, "torgb.affine", rows[-1], 1 / math.sqrt(len(x)))
    return wavelet_sum(correlate(x, state["torgb.weight"]) + state["torgb.bias"][:, None, None])


# -------------------- maths


def test_the_wavelets_are_orthonormal_and_ours():
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    image = inverse_haar(x)
    assert image.shape == (2, 3, 6, 10)
    torch.testing.assert_close(image[1], wavelet_sum(x[1]), atol=1e-14, rtol=0)
    assert image.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-13)


def test_the_mapping_is_the_papers(generator):
    z = torch.randn(10, dtype=torch.float64)
    x = z / torch.sqrt((z * z).mean() + 1e-8)
    for i in range(3):
        weight, bias = (generator.state_dict()[f"mapping.fc{i}.{part}"] for part in ("weight", "bias"))
        x = leaky(weight @ x + bias) * math.sqrt(2)
    w = generator.mapping.to_w(z[None])
    assert x.abs().max() > 0.1
    torch.testing.assert_close(w[0], x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("noise", ["const", "none", "maps"])
def test_the_synthesis_is_written_out(generator, noise):
    rows = torch.randn(2, 8, 14, dtype=torch.float64)  # every row another, in a batch
    maps = [torch.randn(2, 1, *shape, dtype=torch.float64) for shape in generator.noise_shapes]
    stored = [map_[0, 0] for map_ in generator.noise_maps()]
    image = generator.synthesis(rows, maps if noise == "maps" else noise)
    assert image.shape == (2, 3, 64, 64)
    for n in range(2):
        given = {"const": stored, "none": None, "maps": [map_[n, 0] for map_ in maps]}[noise]
        wanted = reference(generator, rows[n], given)
        assert wanted.std() > 0.05
        torch.testing.assert_close(image[n], wanted, atol=1e-10, rtol=0)


def test_a_fresh_one_keeps_the_variance():
    torch.manual_seed(0)
    generator = MobileStyleGAN([64, 64, 64, 32], z_dim=64, w_dim=64)
    image = generator(torch.randn(8, 64))
    assert 0.3 < image.std() < 3


# -------------------- the contract


def test_what_it_says_of_itself(generator):
    assert (generator.num_ws, generator.size_px, generator.channels, generator.label_dim) == (8, 64, 3, 0)
    assert generator.noise_shapes == ((4, 4), (8, 8), (8, 8), (16, 16), (16, 16), (32, 32), (32, 32))
    assert [tuple(map_.shape) for map_ in generator.noise_maps()] == [
        (1, 1, *shape) for shape in generator.noise_shapes
    ]
    assert generator.layer_names[:5] == ("b4.conv1", "b8.up", "b8.conv0", "b8.conv1", "b16.up")
    assert generator.layer_names[-1] == "b64.image"
    assert generator.row_names == (
        *("b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1", "b32.conv0", "b32.conv1"),
        "b64.torgb",
    )


def test_it_is_built_from_its_config(generator):
    twin = build(generator.config).double()
    twin.load_state_dict(generator.state_dict())
    z = torch.randn(2, 10, dtype=torch.float64)
    assert torch.equal(twin(z), generator(z))
    assert twin.fingerprint() == generator.fingerprint()
    twin.synthesis.b4.conv1.noise_const[0, 0] += 1
    assert twin.fingerprint() != generator.fingerprint()


def test_the_published_one_has_its_size():
    with torch.device("meta"):
        generator = MobileStyleGAN()
    assert (generator.size_px, generator.num_ws, len(generator.noise_shapes)) == (1024, 16, 15)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 9_407_643


def test_each_row_drives_what_its_name_says(generator):
    rows = torch.randn(1, 8, 14, dtype=torch.float64)
    names = list(generator.layer_names)
    before = generator.activations(rows, names)
    for index, name in enumerate(generator.row_names):
        moved = rows.clone()
        moved[:, index] += 1
        after = generator.activations(moved, names)
        changed = [other for other in names if not torch.equal(before[other], after[other])]
        first = {"conv0": name.replace("conv0", "up"), "torgb": "b64.image"}.get(name.split(".")[1], name)
        assert changed == names[names.index(first) :]


def test_taps_read_and_replace(generator):
    rows = torch.randn(1, 8, 14, dtype=torch.float64)
    plain = generator.synthesis(rows)
    found = generator.activations(rows, ["b16.up", "b16.conv1", "b64.image"])
    assert found["b16.up"].shape == (1, 4, 16, 16)
    assert found["b16.conv1"].shape == (1, 12, 16, 16)
    assert torch.equal(found["b64.image"], plain)
    other = generator.synthesis(rows + 1, taps={"b16.conv1": lambda x: found["b16.conv1"]})
    below = torch.cat([rows[:, :5] + 1, rows[:, 5:]], 1)
    again = generator.synthesis(below, taps={"b16.conv1": lambda x: found["b16.conv1"]})
    torch.testing.assert_close(again, plain, atol=1e-12, rtol=0)
    assert not torch.allclose(other, plain)


def test_truncation_and_cutoff(generator):
    z = torch.randn(2, 10, dtype=torch.float64)
    w, mean = generator.mapping.to_w(z), generator.w_avg
    w_plus = generator.mapping(z, truncation=0.7, cutoff=3)
    torch.testing.assert_close(w_plus[:, 2], mean + 0.7 * (w - mean))
    assert torch.equal(w_plus[:, 3], w)


def test_fresh_noise_differs_and_none_is_still(generator):
    rows = torch.randn(1, 8, 14, dtype=torch.float64)
    torch.manual_seed(0)
    first, second = generator.synthesis(rows, "random"), generator.synthesis(rows, "random")
    assert not torch.allclose(first, second)
    zeros = [torch.zeros(1, 1, *shape, dtype=torch.float64) for shape in generator.noise_shapes]
    assert torch.equal(generator.synthesis(rows, zeros), generator.synthesis(rows, "none"))


def test_gradients_reach_latents_noise_and_weights(generator):
    rows = torch.randn(1, 8, 14, dtype=torch.float64, requires_grad=True)
    maps = [map_.requires_grad_() for map_ in generator.noise_maps()]
    generator.synthesis(rows, maps).square().mean().backward()
    assert rows.grad is not None
    assert (rows.grad.abs().sum(2) > 0).all()
    assert all(map_.grad is not None and map_.grad.abs().sum() > 0 for map_ in maps)
    unused = [name for name, value in generator.synthesis.named_parameters() if value.grad is None]
    assert not unused
    # ... and it is the right one.
    generator.requires_grad_(False)
    direction = torch.randn_like(rows)
    step = 1e-5
    with torch.no_grad():
        losses = [generator.synthesis(rows + s * direction, maps).square().mean() for s in (step, -step)]
    numeric = (losses[0] - losses[1]) / (2 * step)
    assert (rows.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-6)


def test_an_image_does_not_depend_on_its_batch(generator):
    rows = torch.randn(3, 8, 14, dtype=torch.float64)
    batch = generator.synthesis(rows)
    for n in range(3):
        torch.testing.assert_close(generator.synthesis(rows[n : n + 1])[0], batch[n], atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(generator, dtype):
    rows = torch.randn(1, 8, 14, dtype=torch.float64)
    exact = generator.synthesis(rows)
    image = generator.to(dtype).synthesis(rows.to(dtype))
    assert image.dtype == torch.float32
    limit = 1e-5 if dtype == torch.float32 else 0.1
    assert ((image - exact).square().mean().sqrt() / exact.std()).item() < limit


def test_autocast_keeps_the_styles_precise(generator):
    generator.float()
    rows = torch.randn(1, 8, 14)
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(torch.randn(2, 10))
        again = generator.synthesis(rows)
    assert image.dtype == again.dtype == torch.float32
    exact = generator.synthesis(rows)
    assert ((again - exact).square().mean().sqrt() / exact.std()).item() < 0.1


@pytest.mark.gpu
def test_the_gpu_makes_the_same_image(generator):
    rows = torch.randn(2, 8, 14, dtype=torch.float64)
    wanted = generator.synthesis(rows)
    image = generator.cuda().synthesis(rows.cuda())
    torch.testing.assert_close(image.cpu(), wanted, atol=1e-10, rtol=0)
    half = generator.half().synthesis(rows.cuda().half())
    assert ((half.cpu() - wanted).square().mean().sqrt() / wanted.std()).item() < 0.02


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"widths": [6, 4]}, r"widths=\[6, 4\]: give the channels at 4, 8, ... px, multiples of 4"),
        ({"widths": []}, r"widths=\[\]"),
        ({"widths": [8, 0]}, "multiples of 4"),
        ({"widths": [8], "w_dim": 0}, "w_dim=0: give at least 1"),
    ],
)
def test_impossible_arguments_are_told(words, message):
    with pytest.raises(UserError, match=message):
        MobileStyleGAN(**words)


def test_what_does_not_fit_is_told(generator):
    rows = torch.randn(1, 8, 14, dtype=torch.float64)
    with pytest.raises(UserError, match=r"w_plus has shape \(1, 18, 14\): this generator takes \(N, 8, 14\)"):
        generator.synthesis(torch.zeros(1, 18, 14))
    with pytest.raises(UserError, match=r"z has shape \(1, 14\)"):
        generator(torch.zeros(1, 14))
    with pytest.raises(UserError, match="unconditional"):
        generator(torch.zeros(1, 10), label=torch.zeros(1, 2))
    with pytest.raises(UserError, match="6 maps given, this generator has 7"):
        generator.synthesis(rows, [torch.zeros(1, 1, 4, 4)] * 6)
    with pytest.raises(UserError, match=r"layer b8\.conv2: this generator has b4\.conv1, "):
        generator.activations(rows, ["b8.conv2"])
