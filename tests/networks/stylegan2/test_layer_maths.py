"""StyleGAN2 against its layer maths, written out plainly in float64: one image, one equation at a time.

Nothing here imports a layer of the package: weights are a dictionary under the published names, a convolution
is a sum over shifted pictures, zeros are inserted where the paper inserts zeros, and the filter is the full
4 x 4 matrix.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator

State = dict[str, Tensor]
EPS = 1e-8
LINE = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
FILTER = LINE[:, None] * LINE[None, :]

# --- shared equations ------------------------------------------------------------------------------------


def correlate(x: Tensor, weight: Tensor, pad: int) -> Tensor:
    """out[o, y, x] = sum_{i, u, v} weight[o, i, u, v] x[i, y + u - pad, x + v - pad], zero outside."""
    kernel = weight.shape[-1]
    height, width = (side + 2 * pad - kernel + 1 for side in x.shape[1:])
    padded = x.new_zeros(x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad)
    padded[:, pad : pad + x.shape[1], pad : pad + x.shape[2]] = x
    out = x.new_zeros(weight.shape[0], height, width)
    for u in range(kernel):
        for v in range(kernel):
            shifted = padded[:, u : u + height, v : v + width]
            out = out + torch.tensordot(weight[:, :, u, v], shifted, 1)
    return out


def fir(x: Tensor, pad: tuple[int, int], gain: float) -> Tensor:
    """Filter each channel by gain * [1, 3, 3, 1] x [1, 3, 3, 1] / 64 after zeros before and behind."""
    return filtered(x, FILTER * gain / 64, pad)


def filtered(x: Tensor, matrix: Tensor, pad: tuple[int, int]) -> Tensor:
    before, behind = pad
    matrix = matrix.flip(0, 1)
    padded = x.new_zeros(x.shape[0], *(side + before + behind for side in x.shape[1:]))
    padded[:, before : before + x.shape[1], before : before + x.shape[2]] = x
    out = x.new_zeros(x.shape[0], padded.shape[1] - 3, padded.shape[2] - 3)
    for u in range(4):
        for v in range(4):
            out = out + matrix[u, v] * padded[:, u : u + out.shape[1], v : v + out.shape[2]]
    return out


def insert_zeros(x: Tensor) -> Tensor:
    """(C, H, W) to (C, 2H, 2W): x[i, j] at [2i, 2j], zeros elsewhere."""
    out = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    out[:, ::2, ::2] = x
    return out


def convolve_up(x: Tensor, weight: Tensor) -> Tensor:
    """The transposed convolution of stride 2: x[i] spread by the kernel at 2i, (2H + 1, 2W + 1)."""
    sparse = insert_zeros(x)[:, :-1, :-1]
    return correlate(sparse, weight.flip(2, 3), pad=2)


def skip_up(image: Tensor) -> Tensor:
    return fir(insert_zeros(image), pad=(2, 1), gain=4)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def clamped(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else torch.where(x > limit, limit, torch.where(x < -limit, -limit, x))


def normalised(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + EPS)


def dense(x: Tensor, weight: Tensor, bias: Tensor, rate: float = 1.0) -> Tensor:
    """W x rate / sqrt(in) + b rate, for one vector."""
    return (weight * x).sum(1) * (rate / math.sqrt(len(x))) + bias * rate


def modulated(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool = False) -> Tensor:
    """The weights of one image, then its convolution (and the filter, for twice the size)."""
    own = weight * style[None, :, None, None]
    if demodulate:
        own = own / torch.sqrt((own * own).sum((1, 2, 3), keepdim=True) + EPS)
    if up:
        return fir(convolve_up(x, own), pad=(1, 1), gain=4)
    return correlate(x, own, pad=weight.shape[-1] // 2)


def sizes(size_px: int) -> list[int]:
    return [2**level for level in range(2, size_px.bit_length())]


# --- NVIDIA's convention ---------------------------------------------------------------------------------


def nvidia_shapes(
    size_px: int, channels: int, z_dim: int, w_dim: int, label_dim: int, layers: int, base: int, most: int
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of stylegan2-ada-pytorch's generator, filters left out."""
    shapes: dict[str, tuple[int, ...]] = {"mapping.w_avg": (w_dim,)}
    if label_dim:
        shapes |= {"mapping.embed.weight": (w_dim, label_dim), "mapping.embed.bias": (w_dim,)}
    for i in range(layers):
        width = w_dim if i else z_dim + (w_dim if label_dim else 0)
        shapes |= {f"mapping.fc{i}.weight": (w_dim, width), f"mapping.fc{i}.bias": (w_dim,)}
    below = 0
    for size in sizes(size_px):
        wide = min(base // size, most)
        if size == 4:
            shapes["synthesis.b4.const"] = (wide, 4, 4)
        for name, width in (("conv0", below), ("conv1", wide)):
            if width:
                layer = f"synthesis.b{size}.{name}"
                shapes |= {
                    f"{layer}.weight": (wide, width, 3, 3),
                    f"{layer}.bias": (wide,),
                    f"{layer}.noise_strength": (),
                    f"{layer}.noise_const": (size, size),
                    f"{layer}.affine.weight": (width, w_dim),
                    f"{layer}.affine.bias": (width,),
                }
        rgb = f"synthesis.b{size}.torgb"
        shapes |= {
            f"{rgb}.weight": (channels, wide, 1, 1),
            f"{rgb}.bias": (channels,),
            f"{rgb}.affine.weight": (wide, w_dim),
            f"{rgb}.affine.bias": (wide,),
        }
        below = wide
    return shapes


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0, rate: float = 0.01) -> State:
    """Weights as large as a fresh network's (tiny ones would hide a broken mapping), none exactly 0 or 1."""
    torch.manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, dtype=torch.float64)
        if ".fc" in name and name.startswith("mapping"):
            value = value / rate if name.endswith("weight") else value * (0.1 / rate)
        elif name.endswith("affine.bias"):
            value = 1 + 0.1 * value
        elif name.endswith("noise_strength"):
            value = 0.3 + 0.1 * value
        elif name.endswith("bias"):
            value = 0.1 * value
        elif name.endswith("w_avg"):
            value = 0.3 * value
        state[name] = value
    return state


def nvidia_mapping(state: State, z: Tensor, label: Tensor | None, layers: int, rate: float = 0.01) -> Tensor:
    """w of one z (and one label)."""
    x = normalised(z)
    if label is not None:
        embedded = dense(label, state["mapping.embed.weight"], state["mapping.embed.bias"])
        x = torch.cat([x, normalised(embedded)])
    for i in range(layers):
        x = leaky(dense(x, state[f"mapping.fc{i}.weight"], state[f"mapping.fc{i}.bias"], rate)) * math.sqrt(2)
    return x


def nvidia_synthesis(
    state: State,
    size_px: int,
    rows: Tensor,
    noises: list[Tensor] | None = None,
    clamp: float | None = None,
) -> dict[str, Tensor]:
    """All activations for one w_plus (num_ws, w_dim); the last is the image.

    Row k drives convolution k; the image layer of a resolution takes the row after its last convolution's.
    ``noises`` has one (h, w) map for each convolution; None takes the stored ones.
    """
    found: dict[str, Tensor] = {}
    x = state["synthesis.b4.const"]
    image = torch.zeros(())
    k = 0
    for size in sizes(size_px):
        for name in ("conv1",) if size == 4 else ("conv0", "conv1"):
            layer = f"synthesis.b{size}.{name}"
            style = dense(rows[k], state[f"{layer}.affine.weight"], state[f"{layer}.affine.bias"])
            x = modulated(x, state[f"{layer}.weight"], style, demodulate=True, up=name == "conv0")
            noise = state[f"{layer}.noise_const"] if noises is None else noises[k]
            x = x + state[f"{layer}.noise_strength"] * noise
            x = leaky(x + state[f"{layer}.bias"][:, None, None]) * math.sqrt(2)
            x = clamped(x, clamp)
            found[f"b{size}.{name}"] = x
            k += 1
        rgb = f"synthesis.b{size}.torgb"
        style = dense(rows[k], state[f"{rgb}.affine.weight"], state[f"{rgb}.affine.bias"])
        weight = state[f"{rgb}.weight"]
        y = modulated(x, weight, style / math.sqrt(weight.shape[1]), demodulate=False)
        y = clamped(y + state[f"{rgb}.bias"][:, None, None], clamp)
        image = y if size == 4 else skip_up(image) + y
        found[f"b{size}.image"] = image
    return found


# --- rosinality's convention -----------------------------------------------------------------------------


def rosinality_layers(size_px: int) -> list[tuple[str, str, int]]:
    """(NVIDIA's name, rosinality's name, number of the noise map) of every convolution."""
    table = [("synthesis.b4.conv1", "conv1", 0)]
    for size in sizes(size_px)[1:]:
        level = size.bit_length() - 1
        first = 2 * (level - 3)
        table.append((f"synthesis.b{size}.conv0", f"convs.{first}", 2 * level - 5))
        table.append((f"synthesis.b{size}.conv1", f"convs.{first + 1}", 2 * level - 4))
    return table


def to_rosinality(state: State, size_px: int) -> tuple[State, Tensor]:
    """rosinality's state and its ``latent_avg``, from NVIDIA's: nothing but names and axes."""
    out: State = {}
    for name, value in state.items():
        if name.startswith("mapping.fc"):
            index, kind = name.removeprefix("mapping.fc").split(".")
            out[f"style.{int(index) + 1}.{kind}"] = value
    out["input.input"] = state["synthesis.b4.const"][None]
    for ours, theirs, number in rosinality_layers(size_px):
        out[f"{theirs}.conv.weight"] = state[f"{ours}.weight"][None]
        out[f"{theirs}.conv.modulation.weight"] = state[f"{ours}.affine.weight"]
        out[f"{theirs}.conv.modulation.bias"] = state[f"{ours}.affine.bias"]
        out[f"{theirs}.noise.weight"] = state[f"{ours}.noise_strength"].reshape(1)
        out[f"{theirs}.activate.bias"] = state[f"{ours}.bias"]
        out[f"noises.noise_{number}"] = state[f"{ours}.noise_const"][None, None]
        if ours.endswith("conv0"):
            out[f"{theirs}.conv.blur.kernel"] = FILTER / 16
    for index, size in enumerate(sizes(size_px)):
        ours, theirs = f"synthesis.b{size}.torgb", f"to_rgbs.{index - 1}" if index else "to_rgb1"
        out[f"{theirs}.conv.weight"] = state[f"{ours}.weight"][None]
        out[f"{theirs}.conv.modulation.weight"] = state[f"{ours}.affine.weight"]
        out[f"{theirs}.conv.modulation.bias"] = state[f"{ours}.affine.bias"]
        out[f"{theirs}.bias"] = state[f"{ours}.bias"].reshape(1, -1, 1, 1)
        if index:
            out[f"{theirs}.upsample.kernel"] = FILTER / 16
    return out, state["mapping.w_avg"]


def from_rosinality(state: State, latent_avg: Tensor, size_px: int) -> State:
    """NVIDIA's names from rosinality's; every key but the filters must find its place."""
    left = {name: value for name, value in state.items() if not name.endswith(".kernel")}
    out: State = {"mapping.w_avg": latent_avg}
    for index in range(sum(name.startswith("style.") for name in state) // 2):
        out[f"mapping.fc{index}.weight"] = left.pop(f"style.{index + 1}.weight")
        out[f"mapping.fc{index}.bias"] = left.pop(f"style.{index + 1}.bias")
    out["synthesis.b4.const"] = left.pop("input.input")[0]
    for ours, theirs, number in rosinality_layers(size_px):
        out[f"{ours}.weight"] = left.pop(f"{theirs}.conv.weight")[0]
        out[f"{ours}.affine.weight"] = left.pop(f"{theirs}.conv.modulation.weight")
        out[f"{ours}.affine.bias"] = left.pop(f"{theirs}.conv.modulation.bias")
        out[f"{ours}.noise_strength"] = left.pop(f"{theirs}.noise.weight")[0]
        out[f"{ours}.bias"] = left.pop(f"{theirs}.activate.bias")
        out[f"{ours}.noise_const"] = left.pop(f"noises.noise_{number}")[0, 0]
    for index, size in enumerate(sizes(size_px)):
        ours, theirs = f"synthesis.b{size}.torgb", f"to_rgbs.{index - 1}" if index else "to_rgb1"
        out[f"{ours}.weight"] = left.pop(f"{theirs}.conv.weight")[0]
        out[f"{ours}.affine.weight"] = left.pop(f"{theirs}.conv.modulation.weight")
        out[f"{ours}.affine.bias"] = left.pop(f"{theirs}.conv.modulation.bias")
        out[f"{ours}.bias"] = left.pop(f"{theirs}.bias").flatten()
    assert not left
    return out


def rosinality_style(state: State, z: Tensor, rate: float = 0.01) -> Tensor:
    """w of one z: pixel norm, then dense layers whose scale is rate / sqrt(in)."""
    x = normalised(z)
    for i in range(1, sum(name.startswith("style.") for name in state) // 2 + 1):
        weight = state[f"style.{i}.weight"] * (1 / math.sqrt(len(x)) * rate)
        x = leaky((weight * x).sum(1) + state[f"style.{i}.bias"] * rate) * math.sqrt(2)
    return x


def rosinality_conv(state: State, name: str, x: Tensor, latent: Tensor, demodulate: bool) -> Tensor:
    """Weights / sqrt(fan_in) times the style: the eps of the demodulation meets the *scaled* weights."""
    style = dense(latent, state[f"{name}.modulation.weight"], state[f"{name}.modulation.bias"])
    weight = state[f"{name}.weight"][0]
    weight = weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]
    if demodulate:
        weight = weight * ((weight * weight).sum((1, 2, 3), keepdim=True) + EPS).rsqrt()
    if f"{name}.blur.kernel" in state:
        return filtered(convolve_up(x, weight), state[f"{name}.blur.kernel"], pad=(1, 1))
    return correlate(x, weight, pad=weight.shape[-1] // 2)


def rosinality_synthesis(state: State, size_px: int, latent: Tensor) -> Tensor:
    """The image of one latent (n_latent, style_dim) with the stored noise maps."""

    def styled(x: Tensor, name: str, row: int, number: int) -> Tensor:
        x = rosinality_conv(state, f"{name}.conv", x, latent[row], demodulate=True)
        x = x + state[f"{name}.noise.weight"] * state[f"noises.noise_{number}"][0, 0]
        return leaky(x + state[f"{name}.activate.bias"][:, None, None]) * math.sqrt(2)

    def rgb(x: Tensor, name: str, row: int) -> Tensor:
        return (
            rosinality_conv(state, f"{name}.conv", x, latent[row], demodulate=False)
            + state[f"{name}.bias"][0]
        )

    x = styled(state["input.input"][0], "conv1", 0, 0)
    skip = rgb(x, "to_rgb1", 1)
    i = 1
    for k in range(len(sizes(size_px)) - 1):
        x = styled(x, f"convs.{2 * k}", i, 2 * k + 1)
        x = styled(x, f"convs.{2 * k + 1}", i + 1, 2 * k + 2)
        up = filtered(insert_zeros(skip), state[f"to_rgbs.{k}.upsample.kernel"], pad=(2, 1))
        skip = rgb(x, f"to_rgbs.{k}", i + 2) + up
        i += 2
    return skip


# --- the discriminator -----------------------------------------------------------------------------------


def discriminator_shapes(
    size_px: int,
    channels: int,
    label_dim: int,
    base: int,
    most: int,
    std_channels: int,
    residual: bool,
    layers: int,
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of stylegan2-ada-pytorch's discriminator, filters left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for size in sizes(size_px)[:0:-1]:
        wide, out = min(base // size, most), min(base // (size // 2), most)
        if size == size_px:
            shapes[f"b{size}.fromrgb.weight"] = (wide, channels, 1, 1)
            shapes[f"b{size}.fromrgb.bias"] = (wide,)
        shapes[f"b{size}.conv0.weight"] = (wide, wide, 3, 3)
        shapes[f"b{size}.conv0.bias"] = (wide,)
        shapes[f"b{size}.conv1.weight"] = (out, wide, 3, 3)
        shapes[f"b{size}.conv1.bias"] = (out,)
        if residual:
            shapes[f"b{size}.skip.weight"] = (out, wide, 1, 1)
    wide = min(base // 4, most)
    shapes["b4.conv.weight"], shapes["b4.conv.bias"] = (wide, wide + std_channels, 3, 3), (wide,)
    shapes["b4.fc.weight"], shapes["b4.fc.bias"] = (wide, wide * 16), (wide,)
    features = wide if label_dim else 1
    shapes["b4.out.weight"], shapes["b4.out.bias"] = (features, wide), (features,)
    if label_dim:
        shapes["mapping.embed.weight"], shapes["mapping.embed.bias"] = (wide, label_dim), (wide,)
        for i in range(layers):
            shapes[f"mapping.fc{i}.weight"], shapes[f"mapping.fc{i}.bias"] = (wide, wide), (wide,)
    return shapes


def scaled_conv(state: State, name: str, x: Tensor, pad: int) -> Tensor:
    weight = state[f"{name}.weight"]
    return correlate(x, weight / math.sqrt(weight[0].numel()), pad)


def discriminator_features(state: State, size_px: int, image: Tensor, clamp: float | None) -> Tensor:
    """One image (channels, size, size) to its activations at 4 px."""

    def act(x: Tensor, name: str, gain: float = 1.0) -> Tensor:
        x = leaky(x + state[f"{name}.bias"][:, None, None]) * math.sqrt(2) * gain
        return clamped(x, None if clamp is None else clamp * gain)

    x = act(scaled_conv(state, f"b{size_px}.fromrgb", image, 0), f"b{size_px}.fromrgb")
    for size in sizes(size_px)[:0:-1]:
        residual = f"b{size}.skip.weight" in state
        gain = math.sqrt(0.5) if residual else 1.0
        y = act(scaled_conv(state, f"b{size}.conv0", x, 1), f"b{size}.conv0")
        y = scaled_conv(state, f"b{size}.conv1", fir(y, pad=(2, 2), gain=1), 0)[:, ::2, ::2]
        y = act(y, f"b{size}.conv1", gain)
        if residual:
            y = y + scaled_conv(state, f"b{size}.skip", fir(x, pad=(1, 1), gain=1)[:, ::2, ::2], 0) * gain
        x = y
    return x


def discriminate(
    state: State,
    size_px: int,
    images: Tensor,
    labels: Tensor | None,
    group_size: int,
    std_channels: int,
    clamp: float | None,
    layers: int,
) -> Tensor:
    """Logits of a batch whose number is a multiple of the group, or smaller."""
    number = len(images)
    features = [discriminator_features(state, size_px, image, clamp) for image in images]
    group = min(group_size, number)
    logits = []
    for n in range(number):
        # Image n is compared with n + N / group, n + 2 N / group, ... around the batch.
        step = number // group
        mates = [features[m] for m in range(n % step, number, step)]
        assert len(mates) == group
        x = [features[n]]
        per_map = features[n].shape[0] // std_channels
        for f in range(std_channels):
            share = [mate[f * per_map : (f + 1) * per_map] for mate in mates]
            mean = sum(share) / group
            variance = sum((one - mean) ** 2 for one in share) / group
            x.append(torch.sqrt(variance + EPS).mean().expand(1, 4, 4))
        y = scaled_conv(state, "b4.conv", torch.cat(x), 1)
        y = clamped(leaky(y + state["b4.conv.bias"][:, None, None]) * math.sqrt(2), clamp)
        y = leaky(dense(y.flatten(), state["b4.fc.weight"], state["b4.fc.bias"])) * math.sqrt(2)
        out = dense(y, state["b4.out.weight"], state["b4.out.bias"])
        if labels is not None:
            to = normalised(dense(labels[n], state["mapping.embed.weight"], state["mapping.embed.bias"]))
            for i in range(layers):
                to = leaky(dense(to, state[f"mapping.fc{i}.weight"], state[f"mapping.fc{i}.bias"], 0.01))
                to = to * math.sqrt(2)
            out = (out * to).sum().reshape(1) / math.sqrt(len(to))
        logits.append(out)
    return torch.stack(logits)


# --- the tests -------------------------------------------------------------------------------------------

# Few channels, but not the same number everywhere: a transposed weight would not fit.
WIDTHS = {32: (256, 24), 64: (512, 24), 256: (1024, 12), 1024: (2048, 6)}


def make(
    size_px: int,
    label_dim: int = 0,
    channels: int = 3,
    clamp: float | None = None,
    layers: int = 8,
    seed: int = 0,
) -> tuple[StyleGAN2Generator, State]:
    """A generator in float64 with the weights of a random state under NVIDIA's names."""
    base, most = WIDTHS[size_px]
    generator = StyleGAN2Generator(
        size_px,
        channels,
        z_dim=12,
        w_dim=16,
        label_dim=label_dim,
        mapping_layers=layers,
        channel_base=base,
        channel_max=most,
        conv_clamp=clamp,
    ).double()
    state = filled(nvidia_shapes(size_px, channels, 12, 16, label_dim, layers, base, most), seed)
    generator.load_state_dict(state, strict=True)
    return generator.requires_grad_(False), state


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == torch.float64
    assert expected.std() > 0 if expected.numel() > 1 else True
    assert float((actual - expected).abs().max() / expected.square().mean().sqrt()) < tolerance


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layers", [8, 2])
@pytest.mark.parametrize("label_dim", [0, 5])
def test_mapping_equals_its_equations(label_dim: int, layers: int) -> None:
    generator, state = make(32, label_dim, layers=layers)
    z = 3 * normal(4, 12)
    labels = torch.eye(5, dtype=torch.float64)[[0, 3, 3, 4]] if label_dim else None
    expected = torch.stack(
        [nvidia_mapping(state, z[n], None if labels is None else labels[n], layers) for n in range(4)]
    )
    # A mapping that is broken, or left out, does not hide: w is of order one and depends on z.
    assert 0.1 < expected.std(0).mean() < 10
    same(generator.mapping.to_w(z, labels), expected)
    rows = expected[:, None].repeat(1, generator.num_ws, 1)
    same(generator.mapping(z, labels), rows)
    average = state["mapping.w_avg"]
    assert torch.equal(generator.w_avg, average)
    for psi in (0.7, 0.0, -0.5, 1.5):
        same(generator.mapping(z, labels, psi), average + psi * (rows - average))
        part = rows.clone()
        part[:, :3] = average + psi * (rows[:, :3] - average)
        same(generator.mapping(z, labels, psi, cutoff=3), part)
        same(generator.mapping(z, labels, psi, cutoff=0), rows)


@pytest.mark.parametrize(
    ("size_px", "channels", "number"), [(32, 3, 3), (64, 1, 2), (256, 3, 2), (1024, 3, 1)]
)
def test_synthesis_equals_its_equations_layer_by_layer(size_px: int, channels: int, number: int) -> None:
    generator, state = make(size_px, channels=channels)
    w_plus = normal(number, generator.num_ws, 16)  # another vector in every row: a wrong row would show
    names = generator.layer_names
    found = generator.activations(w_plus, names)
    image = generator.synthesis(w_plus)
    for n in range(number):
        expected = nvidia_synthesis(state, size_px, w_plus[n])
        assert tuple(expected) == names
        for name in names:
            same(found[name][n], expected[name])
        same(image[n], expected[f"b{size_px}.image"])
        assert 0.1 < image[n].std() < 30


@pytest.mark.parametrize("label_dim", [0, 5])
def test_image_of_z_equals_the_equations(label_dim: int) -> None:
    generator, state = make(64, label_dim)
    z = normal(2, 12)
    labels = normal(2, 5, seed=2) if label_dim else None
    average = state["mapping.w_avg"]
    image = generator(z, labels, truncation=0.6, cutoff=4)
    for n in range(2):
        w = nvidia_mapping(state, z[n], None if labels is None else labels[n], 8)
        rows = torch.stack([average + 0.6 * (w - average) if k < 4 else w for k in range(generator.num_ws)])
        same(image[n], nvidia_synthesis(state, 64, rows)["b64.image"])


def test_given_noise_and_none() -> None:
    generator, state = make(32)
    w_plus = normal(2, generator.num_ws, 16)
    maps = [normal(2, 1, *shape, seed=k) for k, shape in enumerate(generator.noise_shapes)]
    assert [map_.shape[-1] for map_ in maps] == [4, 8, 8, 16, 16, 32, 32]
    given = generator.synthesis(w_plus, maps)
    none = generator.synthesis(w_plus, "none")
    for n in range(2):
        own = [map_[n, 0] for map_ in maps]
        same(given[n], nvidia_synthesis(state, 32, w_plus[n], own)["b32.image"])
        nothing = [torch.zeros_like(map_) for map_ in own]
        same(none[n], nvidia_synthesis(state, 32, w_plus[n], nothing)["b32.image"])


def test_clamp_limits_every_activation_and_every_image_layer() -> None:
    generator, state = make(32, clamp=0.8)
    w_plus = normal(2, generator.num_ws, 16)
    image = generator.synthesis(w_plus)
    for n in range(2):
        expected = nvidia_synthesis(state, 32, w_plus[n], clamp=0.8)["b32.image"]
        free = nvidia_synthesis(state, 32, w_plus[n])["b32.image"]
        assert (expected - free).abs().max() > 0.1
        same(image[n], expected)


def test_gradients_equal_those_of_the_equations() -> None:
    """With respect to latents, noise maps and every weight: what inversion and training descend."""
    generator, state = make(32)
    generator.requires_grad_(True)
    w_plus = normal(2, generator.num_ws, 16).requires_grad_()
    maps = [normal(1, 1, *shape, seed=k).requires_grad_() for k, shape in enumerate(generator.noise_shapes)]
    direction = normal(2, 3, 32, 32, seed=5)
    weights = {name: value.clone().requires_grad_() for name, value in state.items() if "synthesis" in name}
    parameters = {name: value for name, value in generator.named_parameters() if name.startswith("synthesis")}
    ours = torch.autograd.grad(
        (generator.synthesis(w_plus, maps) * direction).sum(), [w_plus, *maps, *parameters.values()]
    )
    plain = sum(
        (
            nvidia_synthesis(weights, 32, w_plus[n], [map_[0, 0] for map_ in maps])["b32.image"]
            * direction[n]
        ).sum()
        for n in range(2)
    )
    theirs = torch.autograd.grad(plain, [w_plus, *maps, *(weights[name] for name in parameters)])
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)


@pytest.mark.parametrize("size_px", [32, 64, 256, 1024])
def test_rosinality_layout_holds_the_same_network(size_px: int) -> None:
    generator, state = make(size_px)
    theirs, latent_avg = to_rosinality(state, size_px)
    back = from_rosinality(theirs, latent_avg, size_px)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)

    z = normal(1, 12)
    w = rosinality_style(theirs, z[0])
    same(generator.mapping.to_w(z)[0], w)
    same(generator.mapping(z, None, 0.7)[0, 0], latent_avg + 0.7 * (w - latent_avg))

    # Between the conventions the 1 / sqrt(fan_in) cancels, but for the eps of the demodulation: an effect as
    # small as eps itself. Where the weights carry the factor, eps meets the same sum, and both are equal.
    w_plus = normal(1, generator.num_ws, 16)
    expected = rosinality_synthesis(theirs, size_px, w_plus[0])
    same(generator.synthesis(w_plus)[0], expected, tolerance=1e-6)
    layers = [f"{name}.weight" for name, _, _ in rosinality_layers(size_px)]
    for name in layers:
        back[name] = back[name] / math.sqrt(back[name][0].numel())
    generator.load_state_dict(back, strict=True)
    same(generator.synthesis(w_plus)[0], expected)


def test_eps_of_the_demodulation_is_the_published_one() -> None:
    """Weights of 1e-5 make eps as large as the sum of squares."""
    generator, state = make(32)
    for name in state:
        if ".conv" in name and name.endswith(".weight"):
            state[name] = state[name] * 1e-5
    generator.load_state_dict(state)
    w_plus = normal(1, generator.num_ws, 16)
    small = generator.synthesis(w_plus)[0]
    same(small, nvidia_synthesis(state, 32, w_plus[0])["b32.image"])
    assert (small - nvidia_synthesis(make(32)[1], 32, w_plus[0])["b32.image"]).abs().max() > 1e-3


def test_float32_follows_float64() -> None:
    generator, _ = make(256)
    z = normal(2, 12)
    exact = generator(z)
    single = generator.float()(z.float())
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max() / exact.std()) < 1e-4


@pytest.mark.parametrize("label_dim", [0, 5])
@pytest.mark.parametrize("architecture", ["resnet", "orig"])
@pytest.mark.parametrize(
    ("size_px", "number", "group_size", "std_channels", "clamp"),
    [(32, 8, 4, 1, None), (64, 3, 4, 2, None), (32, 4, 2, 1, 0.5)],
)
def test_discriminator_equals_its_equations(
    architecture: str,
    label_dim: int,
    size_px: int,
    number: int,
    group_size: int,
    std_channels: int,
    clamp: float | None,
) -> None:
    base, most = WIDTHS[size_px]
    discriminator = StyleGAN2Discriminator(
        size_px,
        label_dim=label_dim,
        channel_base=base,
        channel_max=most,
        conv_clamp=clamp,
        mbstd_group_size=group_size,
        mbstd_channels=std_channels,
        architecture=architecture,
        mapping_layers=3,
    ).double()
    residual = architecture == "resnet"
    state = filled(discriminator_shapes(size_px, 3, label_dim, base, most, std_channels, residual, 3))
    discriminator.load_state_dict(state, strict=True)
    images = normal(number, 3, size_px, size_px)
    images = images * torch.linspace(0.2, 2, number)[:, None, None, None]  # groups differ in their spread
    labels = normal(number, 5, seed=3) if label_dim else None
    expected = discriminate(state, size_px, images, labels, group_size, std_channels, clamp, 3)
    same(discriminator(images, labels).detach(), expected)


def test_published_numbers_of_parameters() -> None:
    """FFHQ at 1024 px, configuration f: by the sums of the published shapes, and in the networks."""
    with torch.device("meta"):
        generator = StyleGAN2Generator(1024)
        discriminator = StyleGAN2Discriminator(1024)
    shapes = nvidia_shapes(1024, 3, 512, 512, 0, 8, 32768, 512)
    buffers = {name for name in shapes if name.endswith(("noise_const", "w_avg"))}
    assert {name: tuple(value.shape) for name, value in generator.state_dict().items()} == shapes
    assert {name for name, _ in generator.named_buffers()} == buffers
    assert sum(math.prod(shape) for name, shape in shapes.items() if name not in buffers) == 30_370_060
    assert sum(value.numel() for value in generator.parameters()) == 30_370_060
    shapes = discriminator_shapes(1024, 3, 0, 32768, 512, 1, True, 8)
    assert {name: tuple(value.shape) for name, value in discriminator.state_dict().items()} == shapes
    assert sum(math.prod(shape) for shape in shapes.values()) == 29_012_513
    assert sum(value.numel() for value in discriminator.parameters()) == 29_012_513
