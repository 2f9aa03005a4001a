"""Open trained networks from any file this project can read, without executing anything in it.

Our checkpoints, safetensors files, and the ``.pth`` files of junyanz/pytorch-CycleGAN-and-pix2pix of every
era are told apart by what is in them. What a network is made of is read from the file's own description, or
where it has none, inferred from the names and shapes of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from i2i_lightning.checkpoints.architecture import Architecture, Role, build, describe
from i2i_lightning.checkpoints.contents import Contents, SavedNetwork, Source, TestMode, read_contents
from i2i_lightning.types import ImageFormat, UserError


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator with all that is known of how it was trained.

    Args:
        network: The generator on the CPU, in evaluation mode.
        architecture: Its constructor's arguments as plain values, the class under ``_target_``.
        input: What its input images are.
        output: What its output images are.
        test_mode: ``train`` translates each image by its own statistics and with dropout, ``eval`` by running
            statistics without dropout.
        z_dim: Length of the noise vector that the network takes beside the image, 0 for none.
        direction: What this generator translates: ``ab`` or ``ba``.
        directions: All directions that the file holds.
        size_px: Training size ``(height, width)`` in pixels, if the file says so.
        source: What kind of file this was.
        averaged: Whether the weights are a moving average over training.
    """

    network: nn.Module
    architecture: Architecture
    input: ImageFormat
    output: ImageFormat
    test_mode: TestMode
    z_dim: int
    direction: str
    directions: tuple[str, ...]
    size_px: tuple[int, int] | None
    source: Source
    averaged: bool = False


def open_generator(
    path: str | Path,
    *,
    direction: str | None = None,
    averaged: bool = True,
    dropout: str | bool | None = None,
    test_mode: TestMode | None = None,
) -> LoadedGenerator:
    """Read a generator and what is known of it.

    Args:
        path: A checkpoint of this project, a safetensors file, a ``.pth`` of the reference project or of this
            project's weights, or a folder of the reference's ``latest_net_G*.pth``.
        direction: ``ab`` or ``ba``, needed only to have another than the file's first.
        averaged: Whether to take the moving average of the weights where there is one.
        dropout: Where dropout stands, against what the file says: ``reference``, ``paper`` or ``none`` for a
            U-Net, true or false for any generator. A reference U-Net leaves no trace of it; with batch norm
            it is taken to have been trained with dropout, as pix2pix is, and otherwise without.
        test_mode: ``train`` or ``eval``, against what the file says. For reference files the default is
            ``train``, the reference's own; without batch norm and dropout there is no difference.

    Raises:
        UserError: If the file is missing, damaged, would run code, holds no generator (of this direction) or
            one that is not known here.
    """
    contents = read_contents(path, dropout)
    network, directions = choose(contents, path, "generator", direction)
    average = network.average if averaged else None
    built = build(network.architecture, average or network.state, str(path))
    into, out = network.formats()
    return LoadedGenerator(
        network=built,
        architecture=network.architecture,
        input=into,
        output=out,
        test_mode=test_mode or network.test_mode,
        z_dim=network.z_dim,
        direction=network.direction or direction or "ab",
        directions=directions or (direction or "ab",),
        size_px=network.size_px,
        source=contents.source,
        averaged=average is not None,
    )


def load_generator(
    path: str | Path,
    *,
    direction: str | None = None,
    averaged: bool = True,
    dropout: str | bool | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Return the generator in ``path``, in evaluation mode.

    pix2pix translates with dropout and each image's own statistics, so its output in evaluation mode is not
    that of the paper; ``open_generator`` tells the mode, and ``Translator`` applies it.

    Args:
        path: As for ``open_generator``, and so are the next three.
        direction: ``ab`` or ``ba``.
        averaged: Whether to take the moving average of the weights where there is one.
        dropout: Where dropout stands, against what the file says.
        device: Where it is to be; None for the CPU.

    Raises:
        UserError: As ``open_generator`` does.
    """
    loaded = open_generator(path, direction=direction, averaged=averaged, dropout=dropout)
    return loaded.network.to(device or "cpu")


def load_discriminator(
    path: str | Path, *, direction: str | None = None, device: torch.device | str | None = None
) -> nn.Module:
    """Return the discriminator in ``path``, in evaluation mode.

    Args:
        path: As for ``open_generator``.
        direction: ``ab`` for the one that judges images of b (the reference's ``D_A``), ``ba`` for the other;
            needed only to have another than the file's first.
        device: Where it is to be; None for the CPU.

    Raises:
        UserError: If the file is missing, damaged, would run code, or holds no such discriminator.
    """
    network, _ = choose(read_contents(path), path, "discriminator", direction)
    return build(network.architecture, network.state, str(path)).to(device or "cpu")


def choose(
    contents: Contents, path: str | Path, role: Role, direction: str | None
) -> tuple[SavedNetwork, tuple[str, ...]]:
    """Return the network that plays ``role`` in ``direction``, and all directions of that role in the file.

    A file that does not say its direction serves for either.

    Raises:
        UserError: If there is none.
    """
    fitting = [network for network in contents.networks if network.role == role]
    if not fitting:
        other = "discriminator" if role == "generator" else "generator"
        letter = "G" if role == "generator" else "D"
        raise UserError(
            f"{path}: it holds a {describe(contents.networks[0].architecture)}, and no {role}\n"
            f"give a checkpoint or a *_net_{letter}.pth, or ask for its {other}: load_{other}, "
            f"i2i-convert network={other}"
        )
    if direction not in (None, "ab", "ba"):
        raise UserError(f"direction={direction}: give ab or ba")
    directions = tuple(network.direction for network in fitting if network.direction is not None)
    for network in fitting:
        if direction is None or network.direction in (None, direction):
            return network, directions
    raise UserError(
        f"direction={direction}: {path} holds {' and '.join(directions)} alone; leave direction out"
    )
