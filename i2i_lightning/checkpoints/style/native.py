"""This project's own files of style-based networks: safetensors that describe themselves, and checkpoints.

A safetensors file has one entry in its metadata, :data:`HEADER`, with JSON: the config, and under
``provenance`` what is known of the making, such as the command, the images seen and the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from i2i_lightning.checkpoints.io import first_line, write_beside
from i2i_lightning.checkpoints.style.contents import Numbers, StyleNetwork, Weights
from i2i_lightning.checkpoints.style.values import Missing, Refused, shown
from i2i_lightning.networks.style import ARCHITECTURES, StyleGenerator
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator

HEADER = "i2i_lightning_style"
"""Key of the metadata."""
HEADER_VERSION = 1
AVERAGED = "averaged"
"""Key of the provenance: whether the weights are a moving average over training."""
SAFETENSORS_WORDS = "safetensors of i2i_lightning"
CHECKPOINT_WORDS = "a checkpoint of i2i_lightning"
TARGETS = {f"{module}.{name}": architecture for architecture, (module, name) in ARCHITECTURES.items()}
DISCRIMINATOR = f"{StyleGAN2Discriminator.__module__}.{StyleGAN2Discriminator.__name__}"


# -------------------- safetensors


def save_style_generator(
    path: str | Path, generator: StyleGenerator, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a generator as a safetensors file that :func:`load_style_generator` reads.

    Args:
        path: Where to.
        generator: The generator.
        provenance: What its users should know of its making; plain values. With :data:`AVERAGED` true the
            file is known to hold no weights but the average.

    Raises:
        UserError: If the file cannot be written.
    """
    _save(Path(path), generator, {"role": "generator", "config": generator.config}, provenance)


def save_style_discriminator(
    path: str | Path, discriminator: StyleGAN2Discriminator, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a discriminator; see :func:`save_style_generator`."""
    _save(Path(path), discriminator, {"role": "discriminator", "config": discriminator.arguments}, provenance)


def _save(
    path: Path, network: nn.Module, described: dict[str, Any], provenance: Mapping[str, Any] | None
) -> None:
    header = {"version": HEADER_VERSION, **described, "provenance": dict(provenance or {})}
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    # One entry alone: the order of several would differ from one writing to the next.
    content = to_safetensors(state, {HEADER: json.dumps(header)})

    def write(file: Path) -> None:
        file.write_bytes(content)

    write_beside(path, write)


def style_header(path: Path) -> dict[str, Any] | None:
    """Return what a safetensors file says of itself; None if it is none of these.

    Raises:
        Refused: If what it says is damaged.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise Refused(f"it is not a whole safetensors file ({first_line(error)})") from None
    if HEADER not in metadata:
        return None
    try:
        header = json.loads(metadata[HEADER])
    except (ValueError, RecursionError):
        raise Refused("its header is damaged") from None
    if type(header) is not dict or type(header.get("config")) is not dict:
        raise Refused("its header is damaged")
    if header.get("version") != HEADER_VERSION:
        raise Refused(f"its header has version {shown(header.get('version'))}; {HEADER_VERSION} is read here")
    return header


def read_safetensors(path: Path, role: str) -> StyleNetwork:
    """Return the network in a safetensors file.

    Args:
        path: The file.
        role: ``generator`` or ``discriminator``.

    Raises:
        Missing: If it plays another role.
        Refused: If it is damaged.
    """
    header = style_header(path)
    if header is None:
        raise Refused("its header does not describe a style-based network")
    if header.get("role") != role:
        raise Missing(f"it holds a {shown(header.get('role'))}, and no {role}")
    with safe_open(str(path), framework="pt", device="cpu") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    provenance = header.get("provenance")
    provenance = provenance if type(provenance) is dict else {}
    averaged = provenance.get(AVERAGED) is True
    return StyleNetwork(header["config"], state, averaged, provenance=provenance)


# -------------------- checkpoints


def is_checkpoint(held: Any) -> bool:
    """Return whether this is a checkpoint of a method with a style-based generator.

    Args:
        held: What a file holds, as :func:`~i2i_lightning.checkpoints.style.unpickle.read_pickled` returns it.
    """
    config = held.get("method_config") if isinstance(held, dict) else None
    node = config.get("generator") if isinstance(config, dict) else None
    return isinstance(node, dict) and node.get("_target_") in TARGETS


def read_checkpoint_generator(held: dict[str, Any], averaged: bool = True) -> StyleNetwork:
    """Return the generator of a checkpoint, by default with the average of its weights.

    Raises:
        Refused: If it is not whole.
    """
    node = held["method_config"]["generator"]
    config = {"architecture": TARGETS[node["_target_"]], **_arguments(node)}
    average = _part(held, "averages.generator.")
    last = _part(held, "generator.")
    taken = average if averaged and average else last or average
    if not taken:
        raise Refused("it is a checkpoint without a generator's weights")
    return StyleNetwork(config, taken, averaged=taken is average, provenance=_progress(held))


def read_checkpoint_discriminator(held: dict[str, Any]) -> StyleNetwork:
    """Return the discriminator of a checkpoint.

    Raises:
        Missing: If there is none.
        Refused: If it is not one that this project has.
    """
    node = held["method_config"].get("discriminator")
    state = _part(held, "discriminator.")
    if not isinstance(node, dict) or not state:
        raise Missing("it holds no discriminator")
    if node.get("_target_") != DISCRIMINATOR:
        raise Refused(f"its discriminator is {shown(node.get('_target_'))}, not StyleGAN2's")
    return StyleNetwork(_arguments(node), state)


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in node.items() if not str(key).startswith("_")}


def _part(held: Mapping[str, Any], prefix: str) -> dict[str, Numbers]:
    state = held.get("state_dict")
    if not isinstance(state, Mapping):
        raise Refused("it is a checkpoint without weights")
    weights = Weights(
        {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if isinstance(name, str) and name.startswith(prefix)
        }
    )
    return {name: weights.take(name) for name in weights.arrays}


def _progress(held: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: held[key] for key in ("epoch", "global_step", "images_seen") if isinstance(held.get(key), int)
    }
