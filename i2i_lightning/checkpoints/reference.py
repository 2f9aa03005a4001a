"""Weights in the layout of the reference project, junyanz/pytorch-CycleGAN-and-pix2pix, of every era.

It stores the plain ``state_dict`` of one network per file. Its U-Net nests each level inside of the one above
(``model.model.1.model.3.model...``), its ResNet and PatchGAN number the layers of one long sequence
(``model.10.conv_block.1``), its PixelGAN calls that sequence ``net``. Here the same layers have flat names.
Both list them in the same order, so a table of module names per architecture maps keys both ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.checkpoints.architecture import (
    PATCHGAN,
    PIXELGAN,
    RESNET,
    STATISTICS,
    UNET,
    Architecture,
    Role,
    describe,
    infer,
)
from i2i_lightning.types import UserError

WRAPPERS = ("module", "_orig_mod")
"""What DataParallel, DistributedDataParallel and torch.compile put into the names of the weights they
wrap."""

FILE_NAME = re.compile(r"(?P<epoch>.+)_net_(?P<letter>[GD])(?:_(?P<side>[AB]))?")
"""``latest_net_G_A``: the reference's name of a file, without its suffix."""


@dataclass(frozen=True)
class FileName:
    """What the name of a reference file says: ``latest_net_D_A.pth``.

    Args:
        role: ``G`` or ``D``.
        direction: ``ab`` or ``ba``, of a discriminator that of the generator whose output it judges; None if
            the name has no ``_A`` or ``_B``.
        epoch: ``latest``, or the number of the epoch.
    """

    role: Role
    direction: str | None
    epoch: str


def read_name(stem: str) -> FileName | None:
    """Return what ``stem``, a file's name without its suffix, says; None if it is not such a name.

    ``G_A`` translates a to b and ``D_A`` judges its output, images of b; ``G_B`` and ``D_B`` go the other
    way.
    """
    match = FILE_NAME.fullmatch(stem)
    if match is None:
        return None
    direction = {"A": "ab", "B": "ba"}.get(match["side"] or "")
    return FileName("generator" if match["letter"] == "G" else "discriminator", direction, match["epoch"])


# -------------------- what all eras have in common


def cleaned(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return the weights of one network without what wrappers and old versions of torch left in them.

    Names lose ``module.`` and ``_orig_mod.``. Instance norms of early 2018 kept running statistics that
    nothing ever read; they are dropped. Batch norms before torch 0.4 counted no batches; their count is 0.

    Args:
        state: What the file holds.
        where: The file to name.

    Raises:
        UserError: If there are no weights in it, anything but dense tensors, or the same weights twice.
    """
    clean: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"{where}: not the weights of one network: {str(key)[:60]!r} is of type {kind}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{where}: {key} is not a dense tensor of numbers")
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in clean:
            raise UserError(f"{where}: it has {name} twice, once as {key}")
        clean[name] = value
    if not clean:
        raise UserError(f"{where}: there are no weights in it")
    filled: dict[str, Tensor] = {}
    for key, value in clean.items():
        module, _, leaf = key.rpartition(".")
        if leaf in STATISTICS and f"{module}.weight" not in clean:
            continue
        filled[key] = value
        if leaf == "running_var" and f"{module}.num_batches_tracked" not in clean:
            filled[f"{module}.num_batches_tracked"] = torch.tensor(0)
    return filled


# -------------------- from the reference


def from_reference(
    state: Mapping[str, Tensor], where: str, dropout: str | bool | None = None
) -> tuple[Architecture, dict[str, Tensor]] | None:
    """Recognise a network of the reference by its names and shapes alone.

    Args:
        state: Its weights, ``cleaned``.
        where: The file to name.
        dropout: As in ``infer``; of a ResNet the names tell.

    Returns:
        Its architecture, and its weights under this project's names; None if the names are not the
        reference's.

    Raises:
        UserError: If it is one of the reference's kinds of network, but not one that can be built here.
    """
    skeleton = _skeleton(state)
    if skeleton is None:
        return None
    target, depth, block_dropout = skeleton
    ours = {theirs: name for name, theirs in module_names(target, depth, block_dropout)}
    mapped: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        if module not in ours:
            kind = describe_kind(target, depth)
            raise UserError(
                f"{where}: {key} is not part of the reference project's {kind}, which it resembles"
            )
        mapped[f"{ours[module]}.{leaf}"] = value
    architecture = infer(mapped, block_dropout if target == RESNET and dropout is None else dropout)
    if architecture is None or architecture["_target_"] != target:
        kind = describe_kind(target, depth)
        raise UserError(f"{where}: it resembles the reference project's {kind}, but layers of it are missing")
    return architecture, mapped


def describe_kind(target: str, depth: int) -> str:
    """Return ``U-Net with 8 halvings``."""
    return {
        UNET: f"U-Net with {depth} halvings",
        RESNET: f"ResNet with {depth} blocks",
        PATCHGAN: f"PatchGAN with {depth} layers",
        PIXELGAN: "PixelGAN",
    }[target]


def _skeleton(state: Mapping[str, Tensor]) -> tuple[str, int, bool] | None:
    """Return class, depth and dropout inside of the blocks, as far as names tell; None for foreign names."""
    if "model.model.0.weight" in state:
        depth = next(
            n for n, level in enumerate(_levels(), 1) if not _has(state, f"{level}.{_inside(n - 1)}.")
        )
        return UNET, depth, False
    if "net.0.weight" in state:
        return PIXELGAN, 1, False
    if "model.0.weight" in state:
        layers = [
            key
            for key, value in state.items()
            if re.fullmatch(r"model\.\d+\.weight", key) and value.dim() == 4
        ]
        return PATCHGAN, len(layers) - 2, False
    if "model.1.weight" in state:
        blocks = {match[1] for key in state if (match := re.match(r"model\.(\d+)\.conv_block\.", key))}
        second = [value for key, value in state.items() if key.endswith(".conv_block.6.weight")]
        return RESNET, len(blocks), any(value.dim() == 4 for value in second)
    return None


def _has(state: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state)


def _levels() -> Iterator[str]:
    """Yield the reference's names of the levels of its U-Net, outermost first, without end."""
    name = "model.model"
    for number in range(1_000_000):
        yield name
        name = f"{name}.{_inside(number)}"


def _inside(number: int) -> str:
    """Return where level ``number`` holds the next one: its own layers before it take 1 or 3 places."""
    return "1.model" if number == 0 else "3.model"


def module_names(target: str, depth: int, block_dropout: bool = False) -> list[tuple[str, str]]:
    """Return the modules that have weights as pairs (our name, the reference's), in the order of both.

    Args:
        target: Class of the network.
        depth: Halvings of a U-Net, blocks of a ResNet, layers of a PatchGAN.
        block_dropout: Whether the blocks of a ResNet have dropout, which moves their second half by one.
    """
    if target == UNET:
        return _unet_names(depth)
    if target == RESNET:
        return _resnet_names(depth, 6 if block_dropout else 5)
    if target == PIXELGAN:
        numbered = [("blocks.0.conv", 0), ("blocks.1.conv", 2), ("blocks.1.norm", 3), ("head", 5)]
        return [(ours, f"net.{number}") for ours, number in numbered]
    names = [("blocks.0.conv", "model.0")]
    for layer in range(1, depth + 1):
        names += [
            (f"blocks.{layer}.conv", f"model.{3 * layer - 1}"),
            (f"blocks.{layer}.norm", f"model.{3 * layer}"),
        ]
    return [*names, ("head", f"model.{3 * depth + 2}")]


def _unet_names(depth: int) -> list[tuple[str, str]]:
    levels = [level for level, _ in zip(_levels(), range(depth), strict=False)]
    down: list[tuple[str, str]] = []
    up: list[tuple[str, str]] = []
    for number, level in enumerate(levels):
        last, encoder, decoder = number == depth - 1, f"encoder.{number}", f"decoder.{depth - 1 - number}"
        if number == 0:  # convolution, level inside, ReLU, convolution
            down += [(f"{encoder}.conv", f"{level}.0")]
            up = [(f"{decoder}.conv", f"{level}.3")]
        elif last:  # LeakyReLU, convolution, ReLU, convolution, norm
            down += [(f"{encoder}.conv", f"{level}.1")]
            up = [(f"{decoder}.conv", f"{level}.3"), (f"{decoder}.norm", f"{level}.4"), *up]
        else:  # LeakyReLU, convolution, norm, level inside, ReLU, convolution, norm
            down += [(f"{encoder}.conv", f"{level}.1"), (f"{encoder}.norm", f"{level}.2")]
            up = [(f"{decoder}.conv", f"{level}.5"), (f"{decoder}.norm", f"{level}.6"), *up]
    return down + up


def _resnet_names(blocks: int, second: int) -> list[tuple[str, str]]:
    names = [("stem", 1), ("downs.0", 4), ("downs.1", 7)]
    ups = [("ups.0", 10 + blocks), ("ups.1", 13 + blocks)]

    def pairs(layers: list[tuple[str, int]]) -> list[tuple[str, str]]:
        return [
            pair
            for ours, number in layers
            for pair in ((f"{ours}.conv", f"model.{number}"), (f"{ours}.norm", f"model.{number + 1}"))
        ]

    middle = [
        (f"blocks.{block}.{ours}", f"model.{10 + block}.conv_block.{number}")
        for block in range(blocks)
        for ours, number in (("conv1", 1), ("norm1", 2), ("conv2", second), ("norm2", second + 1))
    ]
    return [*pairs(names), *middle, *pairs(ups), ("head", f"model.{17 + blocks}")]


# -------------------- to the reference


def to_reference(architecture: Architecture, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights under the reference's names, in its order.

    Args:
        architecture: The network's.
        state: Its weights under this project's names.
        where: The file to name.

    Raises:
        UserError: If the reference has no such network.
    """
    inferred = infer(state)
    if inferred is None or inferred["_target_"] != architecture["_target_"]:
        raise UserError(f"{where}: the reference project has no {describe(architecture)}")
    full = inferred | architecture  # a config may leave defaults out; the weights show them all the same
    for key, value, words in (
        ("z_channels", 0, "a noise vector beside the image"),
        ("skips", True, "its skip connections cut"),
        ("spectral_norm", False, "spectral normalisation"),
        ("upsample", "transpose", "doublings by resize and convolution"),
    ):
        if full.get(key, value) != value:
            raise UserError(f"{where}: the reference project has no network with {words} ({key}={full[key]})")
    target = str(full["_target_"])
    depth = next((inferred[key] for key in ("num_downs", "num_blocks", "num_layers") if key in inferred), 1)
    mapped: dict[str, Tensor] = {}
    for ours, theirs in module_names(target, depth, target == RESNET and bool(full["dropout"])):
        for leaf in ("weight", "bias", *STATISTICS):
            if f"{ours}.{leaf}" in state:
                mapped[f"{theirs}.{leaf}"] = state[f"{ours}.{leaf}"]
    if len(mapped) != len(state):
        raise UserError(
            f"{where}: the reference project has no {describe(full)}: it lacks some of its layers"
        )
    return mapped
