"""The configuration of a network, read off the shapes of its weights under this project's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from i2i_lightning.checkpoints.style.values import Refused

MAX_LEVELS = 12
"""Doublings: 8192 px."""
MAX_LAYERS = 64
"""Dense layers of a mapping."""
MAX_BASE = 1 << 23
"""Channels times resolution."""


def sizes_of(state: Mapping[str, Any], pattern: str) -> list[int]:
    """Return the resolutions in names, which must be 4, 8, 16, and so on.

    Args:
        state: Weights.
        pattern: A regular expression with the resolution as its group.

    Raises:
        Refused: If some are missing.
    """
    found = {int(match[1]) for name in state if (match := re.fullmatch(pattern, name))}
    sizes = [4 << level for level in range(len(found))]
    if len(found) < 2 or len(found) > MAX_LEVELS or found != set(sizes):
        raise Refused("it lacks layers: they are not of 4, 8, 16, ... px")
    return sizes


def channel_settings(widths: Mapping[int, int], given: Any = None) -> tuple[int, int]:
    """Return ``(base, most)`` so that ``min(base // R, most)`` are the channels at resolution R.

    Args:
        widths: Channels by resolution.
        given: The base that the file names, taken if it agrees.

    Raises:
        Refused: If there are no such two numbers.
    """
    most = max(widths.values())
    lowest = max(width * size for size, width in widths.items())
    tops = [(width + 1) * size - 1 for size, width in widths.items() if width < most]
    highest = min(tops, default=MAX_BASE)
    if lowest > highest:
        told = ", ".join(f"{width} at {size} px" for size, width in sorted(widths.items()))
        raise Refused(f"its channels do not halve with each doubling of the size: {told}")
    return (given if type(given) is int and lowest <= given <= highest else lowest), most


def _shape(state: Mapping[str, Any], name: str, rank: int) -> tuple[int, ...]:
    if name not in state:
        raise Refused(f"it lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) != rank or min(shape) < 1:
        raise Refused(f"{name} has shape {shape}, not {rank} dimensions")
    return shape


def _check_constant(state: Mapping[str, Any], size_px: int) -> None:
    """Raise ``Refused`` unless the synthesis begins at 4 x 4, and so ends at a square of ``size_px``."""
    height, width = _shape(state, "synthesis.b4.const", 3)[1:]
    if height != width:
        grown = f"{height * size_px // 4} x {width * size_px // 4} px"
        raise Refused(f"its images are not square: {grown}, from a constant of {height} x {width}")
    if height != 4:
        raise Refused(f"its constant is {height} x {width}; known here is 4 x 4")


def _mapping(state: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return layers, width of the input beside the label, width of the output, and length of the label."""
    layers = 0
    while f"mapping.fc{layers}.weight" in state:
        layers += 1
    if not 0 < layers <= MAX_LAYERS:
        raise Refused(f"its mapping has {layers} layers; 1 to {MAX_LAYERS} are known")
    taken = _shape(state, "mapping.fc0.weight", 2)[1]
    made = _shape(state, f"mapping.fc{layers - 1}.weight", 2)[0]
    label = embedded = 0
    if "mapping.embed.weight" in state:
        embedded, label = _shape(state, "mapping.embed.weight", 2)
    return layers, taken - embedded, made, label


def stylegan2(
    state: Mapping[str, Any],
    *,
    channel_base: Any = None,
    lr_multiplier: float = 0.01,
    conv_clamp: float | None = None,
) -> dict[str, Any]:
    """Return the config of a StyleGAN2 generator with the weights ``state``.

    Args:
        state: Weights under this project's names.
        channel_base: What the file says of it; the shapes leave some room.
        lr_multiplier: Rate of the mapping, which no shape shows.
        conv_clamp: Largest magnitude of activations.

    Raises:
        Refused: If they are not those of one.
    """
    sizes = sizes_of(state, r"synthesis\.b(\d{1,5})\.conv1\.weight")
    _check_constant(state, sizes[-1])
    widths = {size: _shape(state, f"synthesis.b{size}.conv1.weight", 4)[0] for size in sizes}
    base, most = channel_settings(widths, channel_base)
    layers, z_dim, w_dim, label_dim = _mapping(state)
    return {
        "architecture": "stylegan2",
        "size_px": sizes[-1],
        "channels": _shape(state, f"synthesis.b{sizes[-1]}.torgb.weight", 4)[0],
        "z_dim": z_dim,
        "w_dim": w_dim,
        "label_dim": label_dim,
        "mapping_layers": layers,
        "channel_base": base,
        "channel_max": most,
        "lr_multiplier": lr_multiplier,
        "conv_clamp": conv_clamp,
    }


def stylegan1(state: Mapping[str, Any], *, lr_multiplier: float = 0.01) -> dict[str, Any]:
    """Return the config of a StyleGAN1 generator with the weights ``state``; see :func:`stylegan2`."""
    sizes = sizes_of(state, r"synthesis\.b(\d{1,5})\.conv1\.weight")
    _check_constant(state, sizes[-1])
    widths = {size: _shape(state, f"synthesis.b{size}.conv1.weight", 4)[0] for size in sizes}
    base, most = channel_settings(widths)
    layers, z_dim, w_dim, label_dim = _mapping(state)
    return {
        "architecture": "stylegan1",
        "size_px": sizes[-1],
        "channels": _shape(state, "synthesis.torgb.weight", 4)[0],
        "z_dim": z_dim,
        "w_dim": w_dim,
        "label_dim": label_dim,
        "mapping_layers": layers,
        "channel_base": base // 2,
        "channel_max": most,
        "lr_multiplier": lr_multiplier,
    }


def discriminator(
    state: Mapping[str, Any],
    *,
    channel_base: Any = None,
    conv_clamp: float | None = None,
    mbstd_group_size: int = 4,
) -> dict[str, Any]:
    """Return the arguments of a StyleGAN2 discriminator with the weights ``state``.

    Args:
        state: Weights under this project's names.
        channel_base: What the file says of it.
        conv_clamp: Largest magnitude of activations.
        mbstd_group_size: Images compared with each other, which no shape shows.

    Raises:
        Refused: If they are not those of one.
    """
    sizes = [4, *sizes_of({**state, "b4.conv0.weight": None}, r"b(\d{1,5})\.conv0\.weight")[1:]]
    widths = {size: _shape(state, f"b{size}.conv0.weight", 4)[0] for size in sizes[1:]}
    widths[4], into = _shape(state, "b4.conv.weight", 4)[:2]
    base, most = channel_settings(widths, channel_base)
    layers = label_dim = 0
    if "mapping.embed.weight" in state:
        label_dim = _shape(state, "mapping.embed.weight", 2)[1]
        while f"mapping.fc{layers}.weight" in state:
            layers += 1
    return {
        "size_px": sizes[-1],
        "channels": _shape(state, f"b{sizes[-1]}.fromrgb.weight", 4)[1],
        "label_dim": label_dim,
        "channel_base": base,
        "channel_max": most,
        "conv_clamp": conv_clamp,
        "mbstd_group_size": mbstd_group_size,
        "mbstd_channels": into - widths[4],
        "architecture": "resnet" if f"b{sizes[-1]}.skip.weight" in state else "orig",
        **({"mapping_layers": layers} if label_dim else {}),
    }
