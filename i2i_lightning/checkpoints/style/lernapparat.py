"""StyleGAN1 as lernapparat has converted it from TensorFlow: ``g_mapping.*`` and ``g_synthesis.*``.

The file has neither the mean latent nor the noise maps. The mean is computed from the mapping; the maps are
drawn anew with a fixed seed, so that the generator is the same at every reading.
"""

from __future__ import annotations

from typing import Any

from i2i_lightning.checkpoints.style import shapes
from i2i_lightning.checkpoints.style.contents import Numbers, StyleNetwork, Weights, drawn_maps, text_keys
from i2i_lightning.checkpoints.style.values import Missing, Refused
from i2i_lightning.networks.stylegan1 import FLIPPED_FROM_PX

WORDS = "a StyleGAN1 that lernapparat converted"
MARK = "g_synthesis.blocks.4x4.const"
NOTES = ("mean latent computed and noise maps drawn, the file has neither",)


def recognise(held: Any) -> bool:
    """Return whether these are such weights."""
    return type(held) is dict and MARK in held


def generator(held: Any, averaged: bool = True) -> StyleNetwork:
    """Return the generator; there is one alone, published as the average.

    Raises:
        Refused: If it is not one that this project has.
    """
    weights = Weights(text_keys(held, "the file"))
    state: dict[str, Numbers] = {}
    for number in range(weights.count("g_mapping.dense", ".weight")):
        for part, rank in (("weight", 2), ("bias", 1)):
            state[f"mapping.fc{number}.{part}"] = weights.take(f"g_mapping.dense{number}.{part}", rank)
    const = weights.take(MARK, 4)
    if const.shape[0] != 1:
        raise Refused(f"{MARK} has shape {const.shape}")
    state["synthesis.b4.const"] = const[0]
    names = dict.fromkeys(weights.arrays) | {"g_synthesis.blocks.4x4.conv1.weight": None}
    sizes = shapes.sizes_of(names, r"g_synthesis\.blocks\.(\d{1,5})x\1\.conv1\.weight")
    maps = iter(drawn_maps([size for size in sizes for _ in range(2)]))
    for size in sizes:
        theirs = f"g_synthesis.blocks.{size}x{size}"
        # The constant has a bias where the others have a convolution.
        layers = ("", "conv.") if size == 4 else ("conv0_up.", "conv1.")
        for index, layer in enumerate(layers):
            ours, epilogue = f"synthesis.b{size}.conv{index}", f"{theirs}.epi{index + 1}"
            if layer:
                kernel = weights.take(f"{theirs}.{layer}weight", 4)
                # As in TensorFlow, where a doubling is a transposed convolution from some size on.
                mirrored = layer == "conv0_up." and size >= FLIPPED_FROM_PX
                state[f"{ours}.weight"] = kernel[:, :, ::-1, ::-1] if mirrored else kernel
            state[f"{ours}.bias"] = weights.take(f"{theirs}.{layer}bias", 1)
            state[f"{ours}.noise_weight"] = weights.take(f"{epilogue}.top_epi.noise.weight", 1)
            state[f"{ours}.noise_const"] = next(maps)
            state[f"{ours}.style.weight"] = weights.take(f"{epilogue}.style_mod.lin.weight", 2)
            state[f"{ours}.style.bias"] = weights.take(f"{epilogue}.style_mod.lin.bias", 1)
    state["synthesis.torgb.weight"] = weights.take("g_synthesis.torgb.weight", 4)
    state["synthesis.torgb.bias"] = weights.take("g_synthesis.torgb.bias", 1)
    weights.finish(".intermediate.kernel")
    return StyleNetwork(shapes.stylegan1(state), state, averaged=True, notes=NOTES)


def discriminator(held: Any) -> StyleNetwork:
    """Raise ``Missing``: the file has a generator alone."""
    raise Missing("it holds no discriminator")
