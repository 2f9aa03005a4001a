"""What a file of trained networks holds, whichever of the known kinds of file it is."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from i2i_lightning.checkpoints.architecture import (
    UNKNOWN,
    Architecture,
    Role,
    describe,
    infer,
    plain,
    role_of,
    with_dropout,
)
from i2i_lightning.checkpoints.io import read_tensors
from i2i_lightning.checkpoints.reference import cleaned, from_reference, read_name
from i2i_lightning.types import ImageFormat, UserError

Source = Literal["i2i_lightning", "reference", "safetensors"]
TestMode = Literal["train", "eval"]

HEADER = "i2i_lightning"
"""Key of a safetensors file's metadata under which its description stands, as JSON."""
HEADER_VERSION = 1

WEIGHTS_FILES = ".ckpt, .pth or .safetensors"


@dataclass(frozen=True)
class SavedNetwork:
    """One network of a file, with all that the file says about it.

    Args:
        name: What its method calls it, such as ``generator_ab``.
        architecture: Its constructor's arguments, the class under ``_target_``.
        state: Its weights under this project's names.
        average: Their moving average over training, where there is one.
        direction: ``ab`` or ``ba``; of a discriminator that of the generator whose output it judges. None if
            the file does not say.
        input: What the input images of this direction are; None if the file does not say.
        output: What its output images are.
        test_mode: How it is meant to run: by each image's own statistics and with dropout, or neither.
        size_px: Training size ``(height, width)``, if known.
    """

    name: str
    architecture: Architecture
    state: dict[str, Tensor]
    average: dict[str, Tensor] | None = None
    direction: str | None = None
    input: ImageFormat | None = None
    output: ImageFormat | None = None
    test_mode: TestMode = "train"
    size_px: tuple[int, int] | None = None

    @property
    def role(self) -> Role:
        """Whether it translates or judges."""
        return "discriminator" if self.name.startswith("discriminator") else "generator"

    @property
    def z_dim(self) -> int:
        """Length of the noise vector that it takes beside the image."""
        return int(self.architecture.get("z_channels", 0))

    def formats(self) -> tuple[ImageFormat, ImageFormat]:
        """Return input and output format, where the file does not say after the generator's channels.

        The reference's only networks from 1 to 2 channels colourise: lightness to chroma.
        """
        into, out = int(self.architecture["in_channels"]), int(self.architecture.get("out_channels", 0))
        if self.input is not None and self.output is not None:
            return self.input, self.output
        if (into, out) == (1, 2):
            return ImageFormat("lightness", 1), ImageFormat("chroma", 2)
        return ImageFormat("image", into), ImageFormat("image", out)


@dataclass(frozen=True)
class Contents:
    """The networks of one file, or of a folder of the reference's files.

    Args:
        source: What kind of file it is.
        networks: All networks in it, at least one.
    """

    source: Source
    networks: list[SavedNetwork]


def read_contents(path: str | Path, dropout: str | bool | None = None) -> Contents:
    """Read every network in ``path`` without executing anything in it.

    Args:
        path: A checkpoint of this project, a safetensors file, a ``.pth`` of the reference or of this
            project's weights, or a folder of the reference's ``latest_net_*.pth``.
        dropout: Dropout of the generators, where it is not to be as the file says or implies.

    Raises:
        UserError: If it is none of these, or not whole.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, dropout)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    _refuse_exports(path)
    if _is_safetensors(path):
        return Contents("safetensors", _read_safetensors(path, dropout))
    held = read_tensors(path)
    if not isinstance(held, Mapping):
        raise UserError(f"{path}: it holds a {type(held).__name__}, not the weights of a network")
    if isinstance(held.get("state_dict"), Mapping):
        if "method_config" in held:
            return Contents("i2i_lightning", _read_ours(held, path, dropout))
        held = held["state_dict"]
    return _read_weights(held, path, dropout)


def _refuse_exports(path: Path) -> None:
    """Raise ``UserError`` for a file that holds a program rather than weights."""
    with path.open("rb") as file:
        start = file.read(4)
    kind = "ONNX" if path.suffix.lower() == ".onnx" else None
    if start == b"PK\x03\x04" and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
        except (OSError, zipfile.BadZipFile):
            return  # whoever reads it says what is wrong
        if any(name.endswith("/constants.pkl") for name in inside) and any(
            "/code/" in name for name in inside
        ):
            kind = "TorchScript"
        elif any(name.endswith("archive_format") for name in inside):
            kind = "torch.export"
    if kind is not None:
        raise UserError(
            f"{path}: this is {kind}, an exported program that cannot be loaded back as a network\n"
            f"give the file it was made from ({WEIGHTS_FILES})"
        )


# -------------------- bare weights


def _read_weights(held: Mapping[str, Any], path: Path, dropout: str | bool | None) -> Contents:
    """Recognise the weights of one network under the reference's names or this project's."""
    where = str(path)
    state = cleaned(held, where)
    found = from_reference(state, where, dropout)
    source: Source = "reference" if found is not None else "i2i_lightning"
    if found is None and (architecture := infer(state, dropout)) is not None:
        found = architecture, state
    if found is None:
        names = ", ".join(list(state)[:2])
        raise UserError(
            f"{path}: weights of a network that is not known here ({names}, ...)\n"
            "known are the U-Net, ResNet, PatchGAN and PixelGAN of the reference project and of this one"
        )
    architecture, state = found
    said, role = read_name(path.stem), role_of(architecture)
    if said is not None and said.role != role:
        raise UserError(f"{path}: its name is that of a {said.role}, but it holds a {describe(architecture)}")
    direction = said.direction if said else None
    network = SavedNetwork(name_of(role, direction), architecture, state, direction=direction)
    if source == "reference" and role == "generator":
        # The reference opens every file as a colour or grey picture, whatever its mode.
        into, out = (replace(side, convert="match") for side in network.formats())
        network = replace(network, input=into, output=out)
    return Contents(source, [network])


def _read_folder(folder: Path, dropout: str | bool | None) -> Contents:
    """Read the newest set of files that the reference has written into ``folder``."""
    named = {file: said for file in sorted(folder.glob("*_net_*.pth")) if (said := read_name(file.stem))}
    epochs = sorted({said.epoch for said in named.values()})
    if not epochs:
        raise UserError(
            f"{folder}: no latest_net_G.pth or the like in this folder; give a file ({WEIGHTS_FILES})"
        )
    if "latest" not in epochs and len(epochs) > 1:
        raise UserError(
            f"{folder}: it has epochs {', '.join(epochs[:6])} and no latest; give one of its files"
        )
    chosen = "latest" if "latest" in epochs else epochs[0]
    networks = [
        network
        for file, said in named.items()
        if said.epoch == chosen
        for network in read_contents(file, dropout if said.role == "generator" else None).networks
    ]
    return Contents("reference", networks)


# -------------------- safetensors


def _is_safetensors(path: Path) -> bool:
    """Return whether ``path`` is one by its name, or by its beginning: a header's length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix.lower() == ".safetensors" or (len(start) == 9 and start[4:] == b"\0\0\0\0{")


def _read_safetensors(path: Path, dropout: str | bool | None) -> list[SavedNetwork]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    if HEADER not in metadata:
        return _read_weights(state, path, dropout).networks
    try:
        header = json.loads(metadata[HEADER])
        version = header["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: its header is not one that i2i_lightning writes") from error
    if version != HEADER_VERSION:
        raise UserError(
            f"{path}: its header has version {version}; this i2i_lightning reads {HEADER_VERSION}"
        )
    architecture = plain(header.get("architecture"), str(path))
    if role_of(architecture) == "generator":
        architecture = with_dropout(architecture, dropout)
    network = SavedNetwork(
        name=_name(header.get("name"), architecture, path),
        architecture=architecture,
        state=cleaned(state, str(path)),
        direction=_direction(header.get("direction"), path),
        input=_format(header.get("input"), path),
        output=_format(header.get("output"), path),
        test_mode=_test_mode(header.get("test_mode", "train"), path),
        size_px=_size(header.get("size_px"), path),
    )
    return [network]


def header_of(network: SavedNetwork, origin: str) -> dict[str, Any]:
    """Return what a safetensors file says about ``network``, as plain values.

    Args:
        network: The network.
        origin: Name of the file that it was read from.
    """
    into, out = network.formats() if network.role == "generator" else (None, None)
    return {
        "version": HEADER_VERSION,
        "name": network.name,
        "architecture": network.architecture,
        "direction": network.direction,
        "input": into and into.to_dict(),
        "output": out and out.to_dict(),
        "test_mode": network.test_mode,
        "z_dim": network.z_dim,
        "size_px": network.size_px and list(network.size_px),
        "range": [-1.0, 1.0],
        "made_from": origin,
    }


# -------------------- checkpoints of this project


def _read_ours(checkpoint: Mapping[str, Any], path: Path, dropout: str | bool | None) -> list[SavedNetwork]:
    states = _by_network(checkpoint["state_dict"], path)
    config = checkpoint.get("method_config") or {}
    translation = checkpoint.get("translation") or {}
    sides: dict[str, dict[str, Any]] = {}
    directions: dict[str, str] = {}
    try:
        for direction, said in (translation.get("directions") or {}).items():
            sides[said["generator"]] = said
            directions[said["generator"]] = _direction(direction, path) or "ab"
        test_mode = _test_mode(translation.get("test_mode", config.get("test_mode", "train")), path)
        size_px = _size(translation.get("size_px"), path)
        networks = [
            _network_of_ours(name, state, config.get(name, config.get(name.partition("_")[0])), path, dropout)
            for name, state in states.items()
            if name.startswith(("generator", "discriminator"))  # a method may keep other tensors too
        ]
    except (AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not a checkpoint of i2i_lightning: what it says of itself is damaged"
        ) from error
    if not networks:
        raise UserError(f"{path}: a checkpoint without a generator or discriminator")
    return [
        replace(
            network,
            average=states.get(f"averages.{network.name}"),
            direction=directions.get(network.name) or direction_of(network.name),
            input=_format(sides.get(network.name, {}).get("input"), path),
            output=_format(sides.get(network.name, {}).get("output"), path),
            test_mode=test_mode,
            size_px=size_px,
        )
        for network in networks
    ]


def _by_network(state: Mapping[str, Any], path: Path) -> dict[str, dict[str, Tensor]]:
    """Split a method's weights by network: ``generator``, ``averages.generator``, ``discriminator`` ..."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in cleaned(state, str(path)).items():
        parts = key.split(".")
        names = 2 if parts[0] == "averages" else 1
        states.setdefault(".".join(parts[:names]), {})[".".join(parts[names:])] = value
    return states


def _network_of_ours(
    name: str, state: dict[str, Tensor], config: Any, path: Path, dropout: str | bool | None
) -> SavedNetwork:
    """Return a network by the method's config, or by its weights if the method had no config."""
    if config is None:
        return SavedNetwork(name, infer(state, dropout) or {"_target_": UNKNOWN}, state)
    architecture = plain(config, str(path))
    generator = role_of(architecture) == "generator"
    return SavedNetwork(name, with_dropout(architecture, dropout if generator else None), state)


def direction_of(name: str) -> str:
    """Return the direction of a network by its name in a method: ``generator_ba``, ``discriminator_a``.

    A discriminator goes with the generator whose output it judges.
    """
    return "ba" if name.endswith(("_ba", "discriminator_a")) else "ab"


def name_of(role: Role, direction: str | None) -> str:
    """Return what a method calls a network: ``generator_ba`` where there are two, else ``generator``.

    Args:
        role: What it does.
        direction: ``ab`` or ``ba``, of a network that is one of two; else None.
    """
    if direction is None:
        return role
    return f"generator_{direction}" if role == "generator" else f"discriminator_{direction[1]}"


# -------------------- values that a file brings along


def _name(value: Any, architecture: Architecture, path: Path) -> str:
    role = role_of(architecture)
    if not isinstance(value, str) or re.fullmatch(rf"{role}(_\w+)?", value) is None:
        raise UserError(f"{path}: it names a network {str(value)[:40]!r}, and describes a {role}")
    return value


def _direction(value: Any, path: Path) -> str | None:
    if value not in (None, "ab", "ba"):
        raise UserError(f"{path}: it names a direction {str(value)[:20]!r}; known are ab and ba")
    return None if value is None else str(value)


def _test_mode(value: Any, path: Path) -> TestMode:
    if value not in ("train", "eval"):
        raise UserError(f"{path}: it names a test mode {str(value)[:20]!r}; known are train and eval")
    return "train" if value == "train" else "eval"


def _size(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(isinstance(side, int) for side in value)
    ):
        raise UserError(f"{path}: it names a training size {str(value)[:20]!r}")
    return value[0], value[1]


def _format(value: Any, path: Path) -> ImageFormat | None:
    if value is None:
        return None
    try:
        known = ImageFormat.from_dict(value)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: what it says of its images is not known here: {str(value)[:80]}") from error
    if (
        known.kind not in ("image", "labels", "lightness", "chroma")
        or known.dtype not in ("uint8", "uint16", "float32")
        or not isinstance(known.channels, int)
    ):
        raise UserError(f"{path}: what it says of its images is not known here: {str(value)[:80]}")
    return known
