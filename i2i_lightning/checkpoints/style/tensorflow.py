"""Network pickles of NVIDIA's stylegan, stylegan2 and stylegan2-ada, for TensorFlow: ``(G, D, Gs)``.

Read without TensorFlow: a network is saved as the source code that builds it, which is not looked at, the
arguments of that code, and its variables. Dense weights are (in, out) there and kernels (height, width, in,
out).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from i2i_lightning.checkpoints.style import shapes
from i2i_lightning.checkpoints.style.contents import (
    Numbers,
    StyleNetwork,
    Weights,
    number,
    setting,
    text_keys,
)
from i2i_lightning.checkpoints.style.nvidia import LABEL_RATE, WHOLE_BATCH
from i2i_lightning.checkpoints.style.values import Instance, Missing, Refused, shown
from i2i_lightning.networks.stylegan1 import FLIPPED_FROM_PX

WORDS = "a network pickle of NVIDIA's, for TensorFlow"
MAX_NESTING = 3
MAX_VARIABLES = 5000
ADA_VERSION = 5
"""From this version of the pickled class on, networks are those of stylegan2-ada."""


def recognise(held: Any) -> bool:
    """Return whether this is such a pickle: three networks, or one by itself."""
    networks = held if isinstance(held, (tuple, list)) else [held]
    return bool(networks) and all(
        isinstance(network, Instance) and network.kind == "network" for network in networks
    )


def generator(held: Any, averaged: bool = True) -> StyleNetwork:
    """Return the generator, by default with the average of its weights.

    Raises:
        Refused: If there is none, or not one that this project has.
    """
    networks = held if isinstance(held, (tuple, list)) else [held]
    network = _Network(networks[-1 if averaged else 0])
    weights = network.weights
    mean = averaged and len(networks) == 3
    if "synthesis/4x4/Conv/mod_weight" in weights:
        return _stylegan2(network, mean)
    if "synthesis/4x4/Conv/StyleMod/weight" in weights:
        return _stylegan1(network, mean)
    if "mapping/Dense0/weight" in weights:
        raise Refused("it is a generator of a kind that is not known here; StyleGAN1 and 2 are")
    raise Refused("it holds no generator with styles")


def discriminator(held: Any) -> StyleNetwork:
    """Return the discriminator of a StyleGAN2.

    Raises:
        Missing: If there is none.
        Refused: If it is not one that this project has.
    """
    networks = held if isinstance(held, (tuple, list)) else [held]
    network = _Network(networks[1] if len(networks) == 3 else networks[0])
    weights = network.weights
    if "4x4/Dense1/weight" in weights or any(name.startswith("FromRGB_lod") for name in weights.arrays):
        raise Refused(
            "its discriminator grows progressively, as that of StyleGAN1 does; known is StyleGAN2's"
        )
    if "Output/weight" not in weights:
        raise Missing("it holds no discriminator")
    return _discriminator(network)


class _Network:
    """The variables of one network and its parts, and the arguments that it was built with.

    Args:
        root: The network.
    """

    def __init__(self, root: Instance) -> None:
        self.settings: dict[str, Any] = {}
        self.version = 0
        arrays: dict[str, Any] = {}
        self._collect(root, "", arrays)
        self.weights = Weights(arrays)

    def _collect(self, network: object, path: str, arrays: dict[str, Any]) -> None:
        if not isinstance(network, Instance) or network.kind != "network" or path.count("/") > MAX_NESTING:
            raise Refused(f"its part {shown(path)} is {shown(network)}")
        state = text_keys(network.state, "the state of a network")
        version = state.get("version")
        if type(version) is not int or not 2 <= version <= 5:
            raise Refused(f"its network has version {shown(version)}; 2 to 5 are known")
        self.version = max(version, self.version)
        self.settings = text_keys(state.get("static_kwargs"), "static_kwargs") | self.settings
        variables = state.get("variables")
        if not isinstance(variables, list) or len(variables) + len(arrays) > MAX_VARIABLES:
            raise Refused(f"its variables are {shown(variables)}, not a list of up to {MAX_VARIABLES}")
        for pair in variables:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
                raise Refused("it has a variable that is no name and value")
            arrays[path + pair[0]] = pair[1]
        # Older versions had no parts.
        for name, part in text_keys(state.get("components", {}), "components").items():
            self._collect(part, f"{path}{name}/", arrays)

    def check(self, name: str, *allowed: object) -> None:
        """Raise ``Refused`` unless a setting is one of ``allowed``, of which the first is the default."""
        setting(self.settings.get(name, allowed[0]), name, allowed)

    def clamp(self) -> float | None:
        """Return the largest magnitude of activations."""
        value = self.settings.get("conv_clamp")
        return None if value is None else number(value, "conv_clamp")

    def dense(self, name: str) -> Numbers:
        """Return a dense weight as (out, in)."""
        values: Numbers = self.weights.take(name, 2).T
        return values

    def kernel(self, name: str) -> Numbers:
        """Return the weight of a convolution as (out, in, height, width)."""
        values: Numbers = self.weights.take(name, 4).transpose(3, 2, 0, 1)
        return values

    def first(self, name: str, rank: int) -> Numbers:
        """Return an array without its leading sides, which are 1."""
        values = self.weights.take(name)
        if values.ndim < rank or any(side != 1 for side in values.shape[: values.ndim - rank]):
            raise Refused(f"{name} has shape {values.shape}")
        return values.reshape(values.shape[values.ndim - rank :])

    def mapping(self) -> dict[str, Numbers]:
        """Return the weights of the mapping's dense layers, and the mean latent."""
        self.check("mapping_nonlinearity", "lrelu")
        self.check("normalize_latents", True)
        state = {"mapping.w_avg": self.weights.take("dlatent_avg", 1)}
        for layer in range(self.weights.count("mapping/Dense", "/weight")):
            state[f"mapping.fc{layer}.weight"] = self.dense(f"mapping/Dense{layer}/weight")
            state[f"mapping.fc{layer}.bias"] = self.weights.take(f"mapping/Dense{layer}/bias", 1)
        return state

    def rate(self) -> float:
        """Return the rate multiplier of the mapping."""
        return number(self.settings.get("mapping_lrmul", 0.01), "mapping_lrmul")

    def sizes(self) -> list[int]:
        """Return the resolutions of the synthesis."""
        names = dict.fromkeys(self.weights.arrays) | {"synthesis/4x4/Conv1/weight": None}
        return shapes.sizes_of(names, r"synthesis/(\d{1,5})x\1/Conv1/weight")


# -------------------- StyleGAN2


def _stylegan2(network: _Network, averaged: bool) -> StyleNetwork:
    weights = network.weights
    if any(name.startswith("synthesis/ToRGB_lod") for name in weights.arrays):
        raise Refused("it grows progressively (configs b to d of StyleGAN2); configs e and f are known here")
    if "mapping/LabelConcat/weight" in weights:
        raise Refused("its label is normalised together with z (LabelConcat); known is the embedding of ADA")
    network.check("architecture", "skip")
    network.check("nonlinearity", "lrelu")
    network.check("use_noise", True)
    network.check("resample_kernel", [1, 3, 3, 1])
    state = network.mapping()
    if "mapping/LabelEmbed/weight" in weights:
        state["mapping.embed.weight"] = network.dense("mapping/LabelEmbed/weight")
        state["mapping.embed.bias"] = weights.take("mapping/LabelEmbed/bias", 1)
    state["synthesis.b4.const"] = network.first("synthesis/4x4/Const/const", 3)
    for level, size in enumerate(network.sizes()):
        ours, theirs = f"synthesis.b{size}", f"synthesis/{size}x{size}"
        if size == 4:
            state |= _layer(network, f"{ours}.conv1", f"{theirs}/Conv", "synthesis/noise0")
        else:
            noises = [f"synthesis/noise{2 * level + offset}" for offset in (-1, 0)]
            state |= _layer(network, f"{ours}.conv0", f"{theirs}/Conv0_up", noises[0])
            # It is a transposed convolution there by another kernel than the one of torch: mirrored.
            state[f"{ours}.conv0.weight"] = state[f"{ours}.conv0.weight"][:, :, ::-1, ::-1]
            state |= _layer(network, f"{ours}.conv1", f"{theirs}/Conv1", noises[1])
        state |= _modulated(network, f"{ours}.torgb", f"{theirs}/ToRGB")
    weights.finish()
    base = network.settings.get("fmap_base")
    config = shapes.stylegan2(
        state,
        channel_base=2 * base if type(base) is int else None,
        lr_multiplier=network.rate(),
        conv_clamp=network.clamp(),
    )
    return StyleNetwork(config, state, averaged)


def _modulated(network: _Network, ours: str, theirs: str) -> dict[str, Numbers]:
    """Return the weights of a modulated convolution; of its style's bias, 1 is added by the code there."""
    return {
        f"{ours}.weight": network.kernel(f"{theirs}/weight"),
        f"{ours}.bias": network.weights.take(f"{theirs}/bias", 1),
        f"{ours}.affine.weight": network.dense(f"{theirs}/mod_weight"),
        f"{ours}.affine.bias": network.weights.take(f"{theirs}/mod_bias", 1) + np.float32(1),
    }


def _layer(network: _Network, ours: str, theirs: str, noise: str) -> dict[str, Numbers]:
    return _modulated(network, ours, theirs) | {
        f"{ours}.noise_strength": network.weights.take(f"{theirs}/noise_strength", 0),
        f"{ours}.noise_const": network.first(noise, 2),
    }


def _discriminator(network: _Network) -> StyleNetwork:
    weights = network.weights
    network.check("architecture", "resnet", "orig")
    network.check("nonlinearity", "lrelu")
    network.check("resample_kernel", [1, 3, 3, 1])
    for name in ("use_spectral_norm", "use_pagan"):
        network.check(name, False)
    names = dict.fromkeys(weights.arrays) | {"4x4/Conv0/weight": None}
    sizes = shapes.sizes_of(names, r"(\d{1,5})x\1/Conv0/weight")
    state: dict[str, Any] = {}
    layers = [(f"b{sizes[-1]}.fromrgb", f"{sizes[-1]}x{sizes[-1]}/FromRGB"), ("b4.conv", "4x4/Conv")]
    for size in sizes[1:]:
        layers += [
            (f"b{size}.conv0", f"{size}x{size}/Conv0"),
            (f"b{size}.conv1", f"{size}x{size}/Conv1_down"),
        ]
        if f"{size}x{size}/Skip/weight" in weights:
            state[f"b{size}.skip.weight"] = network.kernel(f"{size}x{size}/Skip/weight")
    for ours, theirs in layers:
        state[f"{ours}.weight"] = network.kernel(f"{theirs}/weight")
        state[f"{ours}.bias"] = weights.take(f"{theirs}/bias", 1)
    dense = [("b4.fc", "4x4/Dense0", 1.0), ("b4.out", "Output", 1.0)]
    if "LabelEmbed/weight" in weights:
        # The rate is no setting of this project's: what the layers compute with is weight times rate.
        ratio = number(network.settings.get("mapping_lrmul", 0.1), "mapping_lrmul") / LABEL_RATE
        dense.append(("mapping.embed", "LabelEmbed", 1.0))
        mapped = range(weights.count("Mapping", "/weight"))
        dense += [(f"mapping.fc{layer}", f"Mapping{layer}", ratio) for layer in mapped]
    for ours, theirs, ratio in dense:
        state[f"{ours}.weight"] = network.dense(f"{theirs}/weight") * np.float32(ratio)
        state[f"{ours}.bias"] = weights.take(f"{theirs}/bias", 1) * np.float32(ratio)
    if "mapping.embed.weight" not in state and state["b4.out.weight"].shape[0] != 1:
        raise Refused("its discriminator has an output for each class, which is not known here; ADA's is")
    weights.finish()
    # The default was 4 before ADA, and the whole batch since.
    group = network.settings.get("mbstd_group_size", None if network.version >= ADA_VERSION else 4)
    base = network.settings.get("fmap_base")
    config = shapes.discriminator(
        state,
        channel_base=2 * base if type(base) is int else None,
        conv_clamp=network.clamp(),
        mbstd_group_size=WHOLE_BATCH if group is None else int(number(group, "mbstd_group_size")),
    )
    return StyleNetwork(config, state)


# -------------------- StyleGAN1


def _stylegan1(network: _Network, averaged: bool) -> StyleNetwork:
    weights = network.weights
    for name, known in (
        ("nonlinearity", "lrelu"),
        ("use_wscale", True),
        ("use_styles", True),
        ("const_input_layer", True),
        ("use_noise", True),
        ("use_pixel_norm", False),
        ("use_instance_norm", True),
        ("blur_filter", [1, 2, 1]),
    ):
        network.check(name, known)
    network.check("fused_scale", "auto", True, False)
    fused = network.settings.get("fused_scale", "auto")
    flipped_from = FLIPPED_FROM_PX if fused == "auto" else 0 if fused else 1 << 30
    if "synthesis/lod" in weights and float(weights.take("synthesis/lod", 0)) != 0:
        raise Refused("its training ended before it had grown to its full size")
    state = network.mapping()
    if "mapping/LabelConcat/weight" in weights:
        state["mapping.embed.weight"] = network.dense("mapping/LabelConcat/weight")
    state["synthesis.b4.const"] = network.first("synthesis/4x4/Const/const", 3)
    for level, size in enumerate(network.sizes()):
        names = ("Const", "Conv") if size == 4 else ("Conv0_up", "Conv1")
        for index, name in enumerate(names):
            ours, theirs = f"synthesis.b{size}.conv{index}", f"synthesis/{size}x{size}/{name}"
            if name != "Const":
                kernel = network.kernel(f"{theirs}/weight")
                mirrored = name == "Conv0_up" and size >= flipped_from
                state[f"{ours}.weight"] = kernel[:, :, ::-1, ::-1] if mirrored else kernel
            state[f"{ours}.bias"] = weights.take(f"{theirs}/bias", 1)
            state[f"{ours}.noise_weight"] = weights.take(f"{theirs}/Noise/weight", 1)
            state[f"{ours}.noise_const"] = network.first(f"synthesis/noise{2 * level + index}", 2)
            state[f"{ours}.style.weight"] = network.dense(f"{theirs}/StyleMod/weight")
            state[f"{ours}.style.bias"] = weights.take(f"{theirs}/StyleMod/bias", 1)
    state["synthesis.torgb.weight"] = network.kernel("synthesis/ToRGB_lod0/weight")
    state["synthesis.torgb.bias"] = weights.take("synthesis/ToRGB_lod0/bias", 1)
    # Left are the progress of growing, and the images of the lower resolutions, which it took.
    left = [f"ToRGB_lod{lod}/{part}" for lod in range(1, 12) for part in ("weight", "bias")]
    weights.finish("lod", *left)
    return StyleNetwork(shapes.stylegan1(state, lr_multiplier=network.rate()), state, averaged)
