"""The first StyleGAN against its layer maths, written out plainly in float64: one image, one layer at a time.

The reference keeps the conventions of the published TensorFlow networks: their names, their layouts (kernels
HWIO, dense weights input first), their two ways of upsampling.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from i2i_lightning.networks.style import build
from i2i_lightning.networks.stylegan1 import StyleGAN1Generator
from i2i_lightning.types import UserError

State = dict[str, Tensor]

# --- the published network ----------------------------------------------------------------------------


def correlate(x: Tensor, kernel: Tensor, pad: int) -> Tensor:
    """TensorFlow's convolution: x (I, H, W), kernel (k, k, I, O), zeros outside, no kernel mirrored."""
    side = kernel.shape[0]
    padded = x.new_zeros(x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad)
    padded[:, pad : pad + x.shape[1], pad : pad + x.shape[2]] = x
    height, width = padded.shape[1] - side + 1, padded.shape[2] - side + 1
    out = x.new_zeros(kernel.shape[3], height, width)
    for u in range(side):
        for v in range(side):
            out = out + torch.tensordot(kernel[u, v].t(), padded[:, u : u + height, v : v + width], 1)
    return out


def nearest_then_convolve(x: Tensor, kernel: Tensor) -> Tensor:
    return correlate(x.repeat_interleave(2, 1).repeat_interleave(2, 2), kernel, 1)


def fused(x: Tensor, kernel: Tensor) -> Tensor:
    """The transposed convolution: each pixel spreads the sum of four shifted kernels around (2i, 2j)."""
    spread = x.new_zeros(4, 4, *kernel.shape[2:])
    for down in (0, 1):
        for right in (0, 1):
            spread[down : down + 3, right : right + 3] += kernel
    out = x.new_zeros(kernel.shape[3], 2 * x.shape[1] + 2, 2 * x.shape[2] + 2)
    for u in range(4):
        for v in range(4):
            rows, columns = slice(u, u + 2 * x.shape[1], 2), slice(v, v + 2 * x.shape[2], 2)
            out[:, rows, columns] += torch.tensordot(spread[u, v].t(), x, 1)
    return out[:, 1:-1, 1:-1]


def blurred(x: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
    matrix = line[:, None] * line[None, :] / 16
    return torch.stack([correlate(channel[None], matrix[:, :, None, None], 1)[0] for channel in x])


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def instance_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    x = x - x.mean((1, 2), keepdim=True)
    return x / torch.sqrt((x * x).mean((1, 2), keepdim=True) + eps)


def epilogue(state: State, name: str, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    x = x + state[f"{name}/Noise/weight"][:, None, None] * noise
    x = leaky(x + state[f"{name}/bias"][:, None, None])
    x = instance_norm(x)
    style = w @ state[f"{name}/StyleMod/weight"] / math.sqrt(len(w)) + state[f"{name}/StyleMod/bias"]
    channels = len(x)
    return x * (style[:channels, None, None] + 1) + style[channels:, None, None]


def synthesis(
    state: State, size_px: int, rows: Tensor, noises: list[Tensor] | None = None
) -> dict[str, Tensor]:
    """All activations for one w_plus (num_ws, w_dim), under our names; the last is the image."""
    found: dict[str, Tensor] = {}
    x = torch.zeros(())
    for level in range(2, size_px.bit_length()):
        size, k = 2**level, 2 * (level - 2)
        maps = (
            [state[f"noise{k}"][0, 0], state[f"noise{k + 1}"][0, 0]] if noises is None else noises[k : k + 2]
        )
        if size == 4:
            name = "4x4/Const"
            x = state[f"{name}/const"][0]
        else:
            name = f"{size}x{size}/Conv0_up"
            kernel = state[f"{name}/weight"]
            kernel = kernel * math.sqrt(2) / math.sqrt(9 * kernel.shape[2])
            x = blurred(fused(x, kernel) if size >= 128 else nearest_then_convolve(x, kernel))
        x = epilogue(state, name, x, rows[k], maps[0])
        found[f"b{size}.conv0"] = x
        name = "4x4/Conv" if size == 4 else f"{size}x{size}/Conv1"
        kernel = state[f"{name}/weight"]
        x = correlate(x, kernel * math.sqrt(2) / math.sqrt(9 * kernel.shape[2]), 1)
        x = epilogue(state, name, x, rows[k + 1], maps[1])
        found[f"b{size}.conv1"] = x
    kernel = state["ToRGB_lod0/weight"]
    image = correlate(x, kernel / math.sqrt(kernel.shape[2]), 0)
    found[f"b{size_px}.image"] = image + state["ToRGB_lod0/bias"][:, None, None]
    return found


def mapping(state: State, z: Tensor, label: Tensor | None) -> Tensor:
    """w of one z, and one label where there is one."""
    x = z if label is None else torch.cat([z, label @ state["LabelConcat/weight"]])
    x = x / torch.sqrt((x * x).mean() + 1e-8)
    for i in range(8):
        weight = state[f"Dense{i}/weight"] * (math.sqrt(2) / math.sqrt(len(x)) * 0.01)
        x = leaky(x @ weight + state[f"Dense{i}/bias"] * 0.01)
    return x


def published(
    size_px: int,
    channels: int = 3,
    z_dim: int = 12,
    w_dim: int = 16,
    label_dim: int = 0,
    base: int = 256,
    most: int = 24,
) -> State:
    """Random weights under the published names, as large as a fresh network's, none exactly 0 or 1."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    state = {"dlatent_avg": 0.3 * normal(w_dim)}
    if label_dim:
        state["LabelConcat/weight"] = normal(label_dim, z_dim)
    for i in range(8):
        width = w_dim if i else z_dim * (2 if label_dim else 1)
        state[f"Dense{i}/weight"] = normal(width, w_dim) / 0.01
        state[f"Dense{i}/bias"] = 0.1 * normal(w_dim) / 0.01
    below = 0
    for level in range(2, size_px.bit_length()):
        size = 2**level
        wide = min(base // 2 ** (level - 1), most)
        first, second = (
            ("4x4/Const", "4x4/Conv") if size == 4 else (f"{size}x{size}/Conv0_up", f"{size}x{size}/Conv1")
        )
        if size == 4:
            state["4x4/Const/const"] = 1 + normal(1, wide, 4, 4)
        else:
            state[f"{first}/weight"] = normal(3, 3, below, wide)
        state[f"{second}/weight"] = normal(3, 3, wide, wide)
        for name, number in ((first, 2 * level - 4), (second, 2 * level - 3)):
            state[f"{name}/bias"] = 0.1 * normal(wide)
            state[f"{name}/Noise/weight"] = 0.3 * normal(wide)
            state[f"{name}/StyleMod/weight"] = normal(w_dim, 2 * wide)
            state[f"{name}/StyleMod/bias"] = 0.1 * normal(2 * wide)
            state[f"noise{number}"] = normal(1, 1, size, size)
        below = wide
    state["ToRGB_lod0/weight"], state["ToRGB_lod0/bias"] = (
        normal(1, 1, below, channels),
        0.1 * normal(channels),
    )
    return state


def converted(state: State, size_px: int) -> State:
    """The published state under our names: axes permuted, kernels of the transposed convolutions mirrored."""
    out = {"mapping.w_avg": state["dlatent_avg"]}
    if "LabelConcat/weight" in state:
        out["mapping.embed.weight"] = state["LabelConcat/weight"].t()
    for i in range(8):
        out[f"mapping.fc{i}.weight"] = state[f"Dense{i}/weight"].t()
        out[f"mapping.fc{i}.bias"] = state[f"Dense{i}/bias"]
    for level in range(2, size_px.bit_length()):
        size = 2**level
        names = ("Const", "Conv") if size == 4 else ("Conv0_up", "Conv1")
        for k, name in enumerate(names):
            theirs, ours = f"{size}x{size}/{name}", f"synthesis.b{size}.conv{k}"
            if name == "Const":
                out["synthesis.b4.const"] = state["4x4/Const/const"][0]
            else:
                kernel = state[f"{theirs}/weight"].permute(3, 2, 0, 1)
                out[f"{ours}.weight"] = kernel.flip(2, 3) if name == "Conv0_up" and size >= 128 else kernel
            out[f"{ours}.bias"] = state[f"{theirs}/bias"]
            out[f"{ours}.noise_weight"] = state[f"{theirs}/Noise/weight"]
            out[f"{ours}.noise_const"] = state[f"noise{2 * level - 4 + k}"][0, 0]
            out[f"{ours}.style.weight"] = state[f"{theirs}/StyleMod/weight"].t()
            out[f"{ours}.style.bias"] = state[f"{theirs}/StyleMod/bias"]
    out["synthesis.torgb.weight"] = state["ToRGB_lod0/weight"].permute(3, 2, 0, 1)
    out["synthesis.torgb.bias"] = state["ToRGB_lod0/bias"]
    return out


# --- the tests ----------------------------------------------------------------------------------------


def make(
    size_px: int, channels: int = 3, label_dim: int = 0, base: int = 256, most: int = 24
) -> tuple[StyleGAN1Generator, State]:
    state = published(size_px, channels, label_dim=label_dim, base=base, most=most)
    generator = StyleGAN1Generator(
        size_px, channels, z_dim=12, w_dim=16, label_dim=label_dim, channel_base=base, channel_max=most
    ).double()
    generator.load_state_dict(converted(state, size_px), strict=True)
    return generator.requires_grad_(False), state


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == torch.float64
    assert float((actual - expected).abs().max() / expected.square().mean().sqrt()) < tolerance


def test_fused_upsampling_is_nearest_and_the_mirrored_kernel() -> None:
    x, kernel = normal(5, 6, 7), normal(3, 3, 5, 4, seed=2)
    expected = fused(x, kernel)
    same(nearest_then_convolve(x, kernel.flip(0, 1)), expected, 1e-13)
    assert (nearest_then_convolve(x, kernel) - expected).abs().max() > 0.1
    # The written-out transposed convolution is the library's.
    spread = torch.nn.functional.pad(kernel.permute(2, 3, 0, 1), (1, 1, 1, 1))
    spread = spread[..., 1:, 1:] + spread[..., :-1, 1:] + spread[..., 1:, :-1] + spread[..., :-1, :-1]
    library = torch.nn.functional.conv_transpose2d(x[None], spread, stride=2, padding=1)[0]
    same(library, expected, 1e-13)


@pytest.mark.parametrize("label_dim", [0, 5])
def test_mapping_equals_its_equations(label_dim: int) -> None:
    generator, state = make(8, label_dim=label_dim)
    z = 3 * normal(4, 12)
    labels = normal(4, 5, seed=2) if label_dim else None
    expected = torch.stack([mapping(state, z[n], None if labels is None else labels[n]) for n in range(4)])
    assert 0.1 < expected.std(0).mean() < 10  # tiny weights would hide a broken mapping
    same(generator.mapping.to_w(z, labels), expected)
    average = state["dlatent_avg"]
    rows = generator.mapping(z, labels, truncation=0.7, cutoff=3)
    for k in range(generator.num_ws):
        same(rows[:, k], average + 0.7 * (expected - average) if k < 3 else expected)


@pytest.mark.parametrize(
    ("size_px", "channels", "number"), [(4, 3, 2), (8, 3, 2), (16, 1, 2), (32, 3, 2), (64, 3, 2), (256, 3, 1)]
)
def test_synthesis_equals_its_equations_layer_by_layer(size_px: int, channels: int, number: int) -> None:
    generator, state = make(size_px, channels, base=512, most=12)
    w_plus = normal(number, generator.num_ws, 16)  # another vector in every row: a wrong row would show
    found = generator.activations(w_plus, generator.layer_names)
    image = generator.synthesis(w_plus)
    for n in range(number):
        expected = synthesis(state, size_px, w_plus[n])
        assert tuple(expected) == generator.layer_names
        for name, activation in expected.items():
            same(found[name][n], activation)
        same(image[n], expected[f"b{size_px}.image"])


def test_image_of_z_and_given_noise_equal_the_equations() -> None:
    generator, state = make(32)
    z = normal(2, 12)
    maps = [normal(2, 1, *shape, seed=k) for k, shape in enumerate(generator.noise_shapes)]
    assert [map_.shape[-1] for map_ in maps] == [4, 4, 8, 8, 16, 16, 32, 32]
    given = generator(z, noise=maps)
    none = generator(z, noise="none")
    for n in range(2):
        rows = mapping(state, z[n], None).expand(generator.num_ws, -1)
        own = [map_[n, 0] for map_ in maps]
        same(given[n], synthesis(state, 32, rows, own)["b32.image"])
        nothing = [torch.zeros_like(map_) for map_ in own]
        same(none[n], synthesis(state, 32, rows, nothing)["b32.image"])
    assert all(
        torch.equal(map_[0, 0], state[f"noise{k}"][0, 0]) for k, map_ in enumerate(generator.noise_maps())
    )


def test_epsilon_of_the_instance_norm_shows_where_activations_are_small() -> None:
    """At a standard deviation of 0.01 the usual 1e-5 is a tenth of the variance."""
    generator, state = make(8)
    layer = generator.synthesis.b4.conv0
    for name in ("bias", "Noise/weight"):
        state[f"4x4/Const/{name}"] = torch.zeros_like(state[f"4x4/Const/{name}"])
    layer.bias.zero_()
    layer.noise_weight.zero_()
    x, w = 0.01 * normal(24, 4, 4), normal(16, seed=2)
    x = x - x.mean((1, 2), keepdim=True)
    actual = layer(x[None], w[None], "const")[0]
    same(actual, epilogue(state, "4x4/Const", x, w, torch.zeros(4, 4, dtype=torch.float64)), 1e-12)
    # What the same layer gives with the library's default.
    difference = (instance_norm(leaky(x)) - instance_norm(leaky(x), 1e-5)).abs()
    assert 0.05 < difference.max() < 0.5
    single = layer.float()(x[None].float(), w[None].float(), "const")[0]
    assert (single - actual).abs().max() < 1e-4


def test_order_of_a_layer() -> None:
    """Convolution, blur, noise, bias, leaky ReLU, instance norm, style: another order is another function."""
    generator, state = make(16)
    name = "16x16/Conv0_up"
    x, w, noise = normal(24, 8, 8), normal(16, seed=2), state["noise4"][0, 0]
    kernel = state[f"{name}/weight"] * math.sqrt(2 / (9 * 24))
    actual = generator.synthesis.b16.conv0(x[None], w[None], "const")[0]

    noisy = state[f"{name}/Noise/weight"][:, None, None] * noise
    bias = state[f"{name}/bias"][:, None, None]
    style = (w @ state[f"{name}/StyleMod/weight"] / 4 + state[f"{name}/StyleMod/bias"])[:, None, None]
    scale, shift = style[:24] + 1, style[24:]
    y = nearest_then_convolve(x, kernel)
    same(actual, instance_norm(leaky(blurred(y) + noisy + bias)) * scale + shift)
    others = {
        "blur after noise": instance_norm(leaky(blurred(y + noisy) + bias)) * scale + shift,
        "noise after activation": instance_norm(leaky(blurred(y) + bias) + noisy) * scale + shift,
        "norm before activation": leaky(instance_norm(blurred(y) + noisy + bias)) * scale + shift,
        "style before norm": instance_norm(leaky(blurred(y) + noisy + bias) * scale + shift),
        "scale for shift": instance_norm(leaky(blurred(y) + noisy + bias)) * (shift + 1) + (scale - 1),
    }
    for order, other in others.items():
        assert (actual - other).abs().max() > 0.05, order


def test_gradients_equal_those_of_the_equations() -> None:
    generator, state = make(16)
    w_plus = normal(1, generator.num_ws, 16).requires_grad_()
    maps = [normal(1, 1, *shape, seed=k).requires_grad_() for k, shape in enumerate(generator.noise_shapes)]
    direction = normal(3, 16, 16, seed=5)
    ours = torch.autograd.grad((generator.synthesis(w_plus, maps)[0] * direction).sum(), [w_plus, *maps])
    plain = synthesis(state, 16, w_plus[0], [map_[0, 0] for map_ in maps])["b16.image"]
    theirs = torch.autograd.grad((plain * direction).sum(), [w_plus, *maps])
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)


def test_float32_follows_float64_and_autocast_follows_both() -> None:
    generator, _ = make(64)
    z = normal(2, 12)
    exact = generator(z)
    generator.float()
    single = generator(z.float())
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max() / exact.std()) < 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = generator(z.float())
    assert half.dtype == torch.float32
    assert float((half - exact).square().mean().sqrt() / exact.std()) < 0.1


def test_ffhq_at_1024_px_has_the_published_layout() -> None:
    """The print-out of the published network counts the image layers of all nine resolutions: 26,219,627."""
    with torch.device("meta"):
        generator = StyleGAN1Generator(1024)
    assert generator.num_ws == len(generator.noise_shapes) == len(generator.row_names) == 18
    assert generator.row_names[:3] == ("b4.conv0", "b4.conv1", "b8.conv0")
    widths = [min(8192 // 2 ** (level - 1), 512) for level in range(2, 11)]
    assert [
        generator.synthesis.get_submodule(f"b{2 ** (k + 2)}").conv1.weight.shape[0] for k in range(9)
    ] == widths
    numbers = sum(value.numel() for value in generator.parameters())
    assert numbers == 26_212_019
    assert numbers + sum(3 * width + 3 for width in widths[:-1]) == 26_219_627


def test_config_builds_the_same_network() -> None:
    generator, _ = make(16, channels=1, label_dim=5)
    again = build(generator.config).double()
    assert isinstance(again, StyleGAN1Generator)
    again.load_state_dict(generator.state_dict())
    z, label = normal(1, 12), normal(1, 5, seed=2)
    assert torch.equal(again(z, label), generator(z, label))
    assert again.fingerprint() == generator.fingerprint()


def test_what_does_not_fit_is_said() -> None:
    generator, _ = make(8)
    with pytest.raises(UserError, match=r"size_px=48: StyleGAN takes a power of two"):
        StyleGAN1Generator(48)
    with pytest.raises(UserError, match=r"channel_base=16, .*: 64 px needs at least 32 and 1"):
        StyleGAN1Generator(64, channel_base=16)
    with pytest.raises(UserError, match=r"takes \(N, 12\)"):
        generator(normal(1, 16))
    with pytest.raises(UserError, match=r"takes \(N, 4, 16\)"):
        generator.synthesis(normal(1, 3, 16))
    with pytest.raises(UserError, match="unconditional"):
        generator(normal(1, 12), normal(1, 5))
    with pytest.raises(UserError, match=r"layer b16\.conv0"):
        generator.activations(normal(1, 4, 16), ["b16.conv0"])


def test_taps_replace_activations() -> None:
    generator, state = make(16)
    w_plus = normal(1, generator.num_ws, 16)
    # With the activation at b8.conv1 given, nothing before it matters.
    kept = generator.activations(w_plus, ["b8.conv1"])["b8.conv1"]
    other = normal(1, generator.num_ws, 16, seed=9)
    other[:, 4:] = w_plus[:, 4:]
    image = generator.synthesis(other, taps={"b8.conv1": lambda _: kept})
    same(image[0], synthesis(state, 16, w_plus[0])["b16.image"])
    assert torch.equal(
        generator.synthesis(w_plus, taps={"b16.image": lambda x: -x}), -generator.synthesis(w_plus)
    )


def test_a_fresh_network_begins_as_published() -> None:
    state = StyleGAN1Generator(8, z_dim=64, w_dim=64, channel_base=256).state_dict()
    assert torch.equal(state["synthesis.b4.const"], torch.ones(128, 4, 4))
    for name, value in state.items():
        if name.endswith((".bias", ".noise_weight", "w_avg")):
            assert not value.any(), name
        elif name != "synthesis.b4.const":
            spread = 100.0 if ".fc" in name else 1.0
            assert 0.6 * spread < value.std() < 1.4 * spread, name
