"""Files of rosinality/stylegan2-pytorch, converted (``g_ema``, ``latent_avg``) and trained (``g``, ``d``).

Its networks are those of NVIDIA under other names; :func:`generator_names` and :func:`discriminator_names`
serve both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.checkpoints.style import shapes
from i2i_lightning.checkpoints.style.contents import (
    FILTER,
    Numbers,
    StyleNetwork,
    Weights,
    check_filter,
    drawn_maps,
    text_keys,
)
from i2i_lightning.checkpoints.style.nvidia import WHOLE_BATCH
from i2i_lightning.checkpoints.style.values import Array, Missing, Refused
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.networks.stylegan2.generator import resolutions
from i2i_lightning.types import UserError

WORDS = "a checkpoint of rosinality/stylegan2-pytorch"
MARK = "conv1.conv.modulation.weight"
"""A weight that every generator of this layout has, and no other network."""
NOISES = "noises."
"""How the noise maps are called, which files from before they were saved do not have."""
RATE = 0.01
"""Rate multiplier of the mapping, which the layout does not say."""
AVERAGED = "averaged"
"""Key that this project adds, false where what is called ``g_ema`` is not known to be an average."""
JUDGE = {"label_dim": 0, "architecture": "resnet", "mbstd_channels": 1}
"""What a discriminator of that project always is."""
GROUP = 4
"""Images that its minibatch standard deviation compares."""
UP_GAIN = 4.0
"""Gain of the filters that follow a doubling."""

Form = tuple[int, int]
"""How many sides of 1 the layout has before, and behind, those of this project."""
PLAIN: Form = (0, 0)


def recognise(held: Any) -> bool:
    """Return whether this is such a checkpoint, or the weights of one of its generators by themselves."""
    if type(held) is not dict:
        return False
    states = [held.get(key) for key in ("g_ema", "g", "d")]
    return MARK in held or any(
        type(state) is dict and (MARK in state or "final_conv.0.weight" in state) for state in states
    )


def generator(held: Any, averaged: bool = True) -> StyleNetwork:
    """Return the generator, by default with the average of its weights.

    Raises:
        Refused: If there is none, or not one that this project has.
    """
    if MARK in held:
        return read_generator(held, held.get("latent_avg"))
    keys = ("g_ema", "g") if averaged else ("g", "g_ema")
    key = next((key for key in keys if type(held.get(key)) is dict), None)
    if key is None:
        raise Refused("it holds no generator (g_ema)")
    average = key == "g_ema" and held.get(AVERAGED) is not False
    return read_generator(held[key], held.get("latent_avg"), averaged=average)


def discriminator(held: Any) -> StyleNetwork:
    """Return the discriminator.

    Raises:
        Missing: If there is none.
        Refused: If it is not one that this project has.
    """
    if type(held.get("d")) is not dict:
        raise Missing("it holds no discriminator (d)")
    weights = Weights(text_keys(held["d"], "d"))
    for name in [name for name in weights.arrays if name.endswith(".kernel")]:
        check_filter(weights.take(name, 2))
    convs = weights.count("convs.", ".conv1.0.weight") or 1
    while f"convs.{convs}.conv1.0.weight" in weights:
        convs += 1
    state = {
        ours: _plain(weights.take(theirs), form, theirs)
        for ours, theirs, form in discriminator_names(2 << convs)
    }
    weights.finish()
    return StyleNetwork(shapes.discriminator(state), state)


# -------------------- names


def generator_names(size_px: int, mapping_layers: int) -> Iterator[tuple[str, str, Form]]:
    """Yield (name here, name there, form) of all weights, in the order of that project.

    Args:
        size_px: Side of the images.
        mapping_layers: Dense layers of the mapping.
    """
    sizes = [4 << level for level in range(size_px.bit_length() - 2)]
    for number in range(mapping_layers):
        for part in ("weight", "bias"):
            yield f"mapping.fc{number}.{part}", f"style.{number + 1}.{part}", PLAIN
    yield "synthesis.b4.const", "input.input", (1, 0)
    yield from _convolution("synthesis.b4.conv1", "conv1")
    yield from _to_image("synthesis.b4.torgb", "to_rgb1")
    for level, size in enumerate(sizes[1:]):
        yield from _convolution(f"synthesis.b{size}.conv0", f"convs.{2 * level}")
        yield from _convolution(f"synthesis.b{size}.conv1", f"convs.{2 * level + 1}")
    for level, size in enumerate(sizes[1:]):
        yield from _to_image(f"synthesis.b{size}.torgb", f"to_rgbs.{level}")
    layers = [f"b{size}.{layer}" for size in sizes for layer in ("conv0", "conv1")][1:]
    for index, layer in enumerate(layers):
        yield f"synthesis.{layer}.noise_const", f"{NOISES}noise_{index}", (2, 0)


def _convolution(ours: str, theirs: str) -> Iterator[tuple[str, str, Form]]:
    yield f"{ours}.weight", f"{theirs}.conv.weight", (1, 0)
    yield f"{ours}.affine.weight", f"{theirs}.conv.modulation.weight", PLAIN
    yield f"{ours}.affine.bias", f"{theirs}.conv.modulation.bias", PLAIN
    yield f"{ours}.noise_strength", f"{theirs}.noise.weight", (1, 0)
    yield f"{ours}.bias", f"{theirs}.activate.bias", PLAIN


def _to_image(ours: str, theirs: str) -> Iterator[tuple[str, str, Form]]:
    yield f"{ours}.bias", f"{theirs}.bias", (1, 2)
    yield f"{ours}.weight", f"{theirs}.conv.weight", (1, 0)
    yield f"{ours}.affine.weight", f"{theirs}.conv.modulation.weight", PLAIN
    yield f"{ours}.affine.bias", f"{theirs}.conv.modulation.bias", PLAIN


def discriminator_names(size_px: int) -> Iterator[tuple[str, str, Form]]:
    """Yield (name here, name there, form) of all weights, in the order of that project."""
    yield f"b{size_px}.fromrgb.weight", "convs.0.0.weight", PLAIN
    yield f"b{size_px}.fromrgb.bias", "convs.0.1.bias", PLAIN
    for index in range(1, size_px.bit_length() - 2):
        block = f"b{size_px >> (index - 1)}"
        yield f"{block}.conv0.weight", f"convs.{index}.conv1.0.weight", PLAIN
        yield f"{block}.conv0.bias", f"convs.{index}.conv1.1.bias", PLAIN
        yield f"{block}.conv1.weight", f"convs.{index}.conv2.1.weight", PLAIN
        yield f"{block}.conv1.bias", f"convs.{index}.conv2.2.bias", PLAIN
        yield f"{block}.skip.weight", f"convs.{index}.skip.1.weight", PLAIN
    yield "b4.conv.weight", "final_conv.0.weight", PLAIN
    yield "b4.conv.bias", "final_conv.1.bias", PLAIN
    for number, name in enumerate(("fc", "out")):
        for part in ("weight", "bias"):
            yield f"b4.{name}.{part}", f"final_linear.{number}.{part}", PLAIN


# -------------------- to this project


def read_generator(state: Any, mean: Any, averaged: bool = False) -> StyleNetwork:
    """Return the generator with weights of this layout.

    Args:
        state: The weights.
        mean: The mean latent, ``(w_dim,)`` or with a row for each layer; None if the file has none.
        averaged: Whether these are averages.

    Raises:
        Refused: If they are not those of a generator that this project has.
    """
    arrays = {name: value for name, value in text_keys(state, "its weights").items() if name != "latent_avg"}
    weights = Weights(arrays)
    if any(".iwt." in name or ".dwt." in name for name in arrays):
        raise Refused("it is a SWAGAN, which is not known here")
    for name in [name for name in arrays if name.endswith(".kernel")]:
        check_filter(weights.take(name, 2), UP_GAIN)
    layers = 0
    while f"style.{layers + 1}.weight" in weights:
        layers += 1
    levels = weights.count("to_rgbs.", ".bias")
    if levels > shapes.MAX_LEVELS:
        raise Refused(f"it has {levels} doublings; up to {shapes.MAX_LEVELS} are known")
    lacks_maps = not any(name.startswith(NOISES) for name in arrays)
    names = list(generator_names(4 << levels, layers))
    drawn = [name for name, theirs, _ in names if lacks_maps and theirs.startswith(NOISES)]
    ours = {
        name: _plain(weights.take(theirs), form, theirs) for name, theirs, form in names if name not in drawn
    }
    weights.finish()
    config = shapes.stylegan2(ours)
    notes = []
    if mean is None:
        notes.append("mean latent computed, the file has none")
    else:
        ours["mapping.w_avg"] = _mean(mean)
    if drawn:
        sizes = [int(name.split(".")[1].removeprefix("b")) for name in drawn]
        ours |= zip(drawn, drawn_maps(sizes), strict=True)
        notes.append("noise maps drawn, the file has none")
    return StyleNetwork(config, ours, averaged, tuple(notes))


def _plain(values: Numbers, form: Form, name: str) -> Numbers:
    """Return an array without the sides of 1 that the layout has around it."""
    before, behind = form
    sides = values.shape[before : values.ndim - behind]
    around = values.shape[:before] + values.shape[values.ndim - behind :] if behind else values.shape[:before]
    if values.ndim < before + behind or any(side != 1 for side in around):
        raise Refused(f"{name} has shape {values.shape}")
    return values.reshape(sides)


def _mean(mean: Any) -> Numbers:
    if not isinstance(mean, Array) or mean.values.ndim not in (1, 2) or mean.values.size == 0:
        raise Refused("its latent_avg is not a vector")
    values: Numbers = mean.values
    if values.ndim == 1:
        return values
    if not np.allclose(values, values[:1], rtol=1e-5, atol=1e-6):
        raise Refused("its latent_avg has rows that differ; one mean for all is known here")
    row: Numbers = values[0]
    return row


# -------------------- from this project


def check_layout(generator: StyleGenerator, where: str) -> None:
    """Raise ``UserError`` if that project has no such generator.

    Args:
        generator: The generator.
        where: The file that it came from, for the message.
    """
    impossible = [
        words
        for failed, words in (
            (generator.architecture != "stylegan2", "generator but StyleGAN2's"),
            (generator.label_dim > 0, f"labels (label_dim={generator.label_dim})"),
            (
                generator.z_dim != generator.w_dim,
                f"z and w of two lengths ({generator.z_dim}, {generator.w_dim})",
            ),
        )
        if failed
    ]
    if impossible:
        raise UserError(f"{where}: the layout of rosinality/stylegan2-pytorch has no {impossible[0]}")


def layout(
    generator: StyleGenerator, discriminator: StyleGAN2Discriminator | None, where: str, averaged: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return a generator as a checkpoint of that project, and what its user should know.

    Args:
        generator: The generator.
        discriminator: Its discriminator, if it is to be part of the file; left out if it has no counterpart
            there.
        where: The file that it came from, for messages.
        averaged: Whether its weights are a moving average over training.

    Raises:
        UserError: If that project has no such generator.
    """
    check_layout(generator, where)
    config = generator.config
    state = generator.state_dict()
    rate = config["lr_multiplier"] / RATE
    for key in state:
        if key.startswith("mapping.fc") and rate != 1:
            state[key] = state[key] * rate
    held: dict[str, Any] = {
        "g_ema": _theirs(state, generator_names(config["size_px"], config["mapping_layers"])),
        "latent_avg": state["mapping.w_avg"].clone(),
    }
    notes = [_where_it_loads(config)]
    if not averaged:
        held[AVERAGED] = False
        notes.append(
            "its weights are not known to be an average over training; they stand as g_ema, where that"
            f" project looks, and {AVERAGED}=False beside them says so"
        )
    if config["conv_clamp"] is not None:
        notes.append(
            f"that project does not clamp activations to {config['conv_clamp']:g}, as this network does"
        )
    if discriminator is not None:
        arguments = dict(discriminator.arguments)
        other = next((key for key, value in JUDGE.items() if arguments[key] != value), None)
        if other is not None:
            notes.append(
                f"without the discriminator: it has {other}={arguments[other]}, that project's {JUDGE[other]}"
            )
        else:
            held["d"] = _theirs(discriminator.state_dict(), discriminator_names(discriminator.size_px))
            notes += ["with the discriminator", *_lost_of_judge(arguments, config)]
    return held, notes


def _multiplier(config: Mapping[str, Any]) -> int | None:
    """Return what that project calls ``channel_multiplier``; None if its table has no such channels."""
    sizes = resolutions(config["size_px"])
    widths = [min(config["channel_base"] // size, config["channel_max"]) for size in sizes]
    known = (factor for factor in (2, 1) if widths == [min((factor << 14) // size, 512) for size in sizes])
    return next(known, None)


def _where_it_loads(config: Mapping[str, Any]) -> str:
    """Say what that project's scripts are to be told, or what of their code is to be changed."""
    multiplier = _multiplier(config)
    fixed = {
        "latent": ("w_dim", 512),
        "n_mlp": ("mapping_layers", 8),
        "channels of the image": ("channels", 3),
    }
    changed = [
        f"{theirs} from {value} to {config[ours]}"
        for theirs, (ours, value) in fixed.items()
        if config[ours] != value
    ]
    changed += ["the table of channels"] if multiplier is None else []
    if changed:
        return f"to load it there, change in that project's code: {', '.join(changed)}"
    return f"loads there with size={config['size_px']} channel_multiplier={multiplier}"


def _lost_of_judge(judge: Mapping[str, Any], generator: Mapping[str, Any]) -> list[str]:
    """Say what the layout does not keep of a discriminator that it has."""
    notes = []
    if _multiplier(judge) is None or _multiplier(judge) != _multiplier(generator):
        notes.append("to load the discriminator there, change its table of channels")
    group = judge["mbstd_group_size"]
    if group != GROUP:
        told = f"{group} images" if group < WHOLE_BATCH else "the whole batch"
        notes.append(f"that project's discriminator compares {GROUP} images with each other, this one {told}")
    if judge["conv_clamp"] is not None:
        notes.append(
            f"that project does not clamp activations to {judge['conv_clamp']:g}, as this discriminator does"
        )
    return notes


def _theirs(state: Mapping[str, Tensor], names: Iterator[tuple[str, str, Form]]) -> dict[str, Tensor]:
    """Return weights in that project's layout, with the filters that it keeps beside them."""
    mapped: dict[str, Tensor] = {}
    for ours, theirs, (before, behind) in names:
        gain, filter_name = _filter_before(theirs)
        if filter_name is not None:
            mapped[filter_name] = torch.from_numpy((FILTER * gain).astype(np.float32))
        value = state[ours]
        mapped[theirs] = value.reshape((1,) * before + tuple(value.shape) + (1,) * behind).clone()
    return mapped


def _filter_before(name: str) -> tuple[float, str | None]:
    """Return gain and name of the filter that comes before a weight in that project's order."""
    parts = name.split(".")
    if parts[0] == "convs" and name.endswith(".conv.modulation.weight") and int(parts[1]) % 2 == 0:
        return UP_GAIN, f"convs.{parts[1]}.conv.blur.kernel"
    if parts[0] == "to_rgbs" and name.endswith(".conv.weight"):
        return UP_GAIN, f"to_rgbs.{parts[1]}.upsample.kernel"
    if parts[0] == "convs" and name.endswith((".conv2.1.weight", ".skip.1.weight")):
        return 1.0, f"{name.removesuffix('.1.weight')}.0.kernel"
    return 1.0, None
