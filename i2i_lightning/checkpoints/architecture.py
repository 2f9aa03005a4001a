"""Networks as plain values: read off a file's weights, put into words, and built again.

An architecture is the constructor's arguments of a network under ``i2i_lightning.networks``, its class under
``_target_``, as a config holds it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from i2i_lightning.types import UserError

Architecture = dict[str, Any]
Role = Literal["generator", "discriminator"]

UNET = "i2i_lightning.networks.unet.UNet"
RESNET = "i2i_lightning.networks.resnet.ResNetGenerator"
PATCHGAN = "i2i_lightning.networks.patchgan.PatchGAN"
PIXELGAN = "i2i_lightning.networks.patchgan.PixelGAN"

NAMES = {
    UNET: "U-Net",
    RESNET: "ResNet",
    PATCHGAN: "PatchGAN",
    PIXELGAN: "PixelGAN",
}
OPTIONS = {
    UNET: "generator=unet",
    RESNET: "generator=resnet_9",
    PATCHGAN: "discriminator=patchgan",
    PIXELGAN: "discriminator=pixel",
}
"""What chooses each network on the command line of ``i2i-train``."""

UNKNOWN = "unknown"
"""``_target_`` of a network that a file neither describes nor lets one infer; it can only be copied."""

INITIAL = ("init", "init_gain")
"""Arguments that matter to a fresh network alone."""

PREFIX = "i2i_lightning.networks."
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def role_of(architecture: Architecture) -> Role:
    """Return whether this is a generator or a discriminator."""
    target = str(architecture["_target_"])
    return (
        "discriminator" if target.endswith("Discriminator") or target in (PATCHGAN, PIXELGAN) else "generator"
    )


# -------------------- from weights


def infer(state: Mapping[str, Tensor], dropout: str | bool | None = None) -> Architecture | None:
    """Read the architecture off weights under this project's names.

    Norms, depths, widths and channels leave their mark on names and shapes. Dropout leaves none: unless it is
    given, a U-Net with batch norm has it as in the reference (the published pix2pix models were trained so),
    and every other network has none.

    Args:
        state: Weights of one network, without a prefix.
        dropout: ``reference``, ``paper`` or ``none`` for a U-Net, true or false for any generator.

    Returns:
        The architecture, or None if these are not the names of any network of this project.
    """
    if "encoder.0.conv.weight" in state:
        depth = _count(state, "encoder", "conv.weight")
        last = state.get(f"decoder.{depth - 1}.conv.weight")
        if not _are_images(state["encoder.0.conv.weight"], last):
            return None
        assert last is not None
        norm = _norm(state, "encoder.0.conv.bias")
        return {
            "_target_": UNET,
            "in_channels": state["encoder.0.conv.weight"].shape[1],
            "out_channels": last.shape[1],
            "num_downs": depth,
            "base_channels": state["encoder.0.conv.weight"].shape[0],
            "norm": norm,
            "dropout": unet_dropout(
                ("reference" if norm == "batch" else "none") if dropout is None else dropout
            ),
            "z_channels": 0,
            "skips": _has_skips(state),
        }
    if "stem.conv.weight" in state:
        stem, head, up = (state.get(f"{name}.weight") for name in ("stem.conv", "head", "ups.0.conv"))
        if not _are_images(stem, head, up):
            return None
        assert stem is not None
        assert head is not None
        assert up is not None
        return {
            "_target_": RESNET,
            "in_channels": stem.shape[1],
            "out_channels": head.shape[0],
            "base_channels": stem.shape[0],
            "num_blocks": _count(state, "blocks", "conv1.weight"),
            "norm": _norm(state, "stem.conv.bias"),
            "dropout": resnet_dropout(False if dropout is None else dropout),
            # A transposed convolution is stored (in, out, ...), and it halves the channels.
            "upsample": "transpose" if up.shape[0] > up.shape[1] else "resize",
        }
    if "blocks.0.conv.weight" in state and "head.weight" in state:
        first, layers = state["blocks.0.conv.weight"], _count(state, "blocks", "conv.weight")
        if not _are_images(first, state["head.weight"]):
            return None
        pixel = first.shape[-1] == 1
        return {
            "_target_": PIXELGAN if pixel else PATCHGAN,
            "in_channels": first.shape[1],
            "base_channels": first.shape[0],
            **({} if pixel else {"num_layers": layers - 1}),
            "norm": _norm(state, "blocks.1.conv.bias"),
            "spectral_norm": "blocks.0.conv.u" in state,
        }
    return None


def _count(state: Mapping[str, Tensor], room: str, layer: str) -> int:
    """Return how many of ``<room>.<number>.<layer>`` there are."""
    return sum(re.fullmatch(rf"{room}\.\d+\.{re.escape(layer)}", key) is not None for key in state)


def _are_images(*weights: Tensor | None) -> bool:
    """Return whether all of these are there, and are kernels of convolutions over images."""
    return all(weight is not None and weight.dim() == 4 for weight in weights)


def _has_skips(state: Mapping[str, Tensor]) -> bool:
    """Return whether the decoder's second layer reads more than its first one makes."""
    made, read = state["decoder.0.conv.weight"].shape[1], state["decoder.1.conv.weight"].shape[0]
    return bool(read != made)


def _norm(state: Mapping[str, Tensor], bias: str) -> str:
    """Return the norm: batch leaves statistics, instance a bias before it (``bias_before``), none neither."""
    if any(key.endswith(".running_mean") for key in state):
        return "batch"
    return "instance" if bias in state else "none"


def unet_dropout(given: str | bool) -> str:
    """Return a U-Net's placement of dropout; true is that of the reference.

    Raises:
        UserError: If there is no such placement.
    """
    placement = given if isinstance(given, str) else ("reference" if given else "none")
    if placement not in ("reference", "paper", "none"):
        raise UserError(f"dropout={given}: choose one of reference, paper, none for a U-Net")
    return placement


def resnet_dropout(given: str | bool) -> bool:
    """Return whether a ResNet's blocks have dropout.

    Raises:
        UserError: If ``given`` does not say.
    """
    if given in ("reference", "none"):
        return given == "reference"
    if not isinstance(given, bool):
        raise UserError(f"dropout={given}: give true or false for a ResNet")
    return given


def with_dropout(architecture: Architecture, dropout: str | bool | None) -> Architecture:
    """Return ``architecture`` with dropout as given, where it is given."""
    if dropout is None:
        return architecture
    convert = {UNET: unet_dropout, RESNET: resnet_dropout}.get(architecture["_target_"])
    if convert is None:
        raise UserError(f"dropout={dropout}: {describe(architecture)} has no dropout to set")
    return architecture | {"dropout": convert(dropout)}


# -------------------- into words


def describe(architecture: Architecture) -> str:
    """Return ``U-Net generator, 3 -> 3 channels (num_downs=8, base_channels=64, norm=batch, ...)``."""
    target = str(architecture["_target_"])
    name = NAMES.get(target, target.rpartition(".")[2])
    into = architecture.get("in_channels", "?")
    channels = f"{into} -> {architecture['out_channels']}" if "out_channels" in architecture else str(into)
    shown = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in architecture.items()
        if key not in ("_target_", "in_channels", "out_channels", *INITIAL)
        and not (key in ("z_channels", "spectral_norm") and not value)
        and (key, value) not in (("upsample", "transpose"), ("skips", True))
    ]
    return f"{name} {role_of(architecture)}, {channels} channels ({', '.join(shown)})"


def differences(given: Architecture, wanted: Architecture) -> list[str]:
    """Return the keys in which two architectures differ visibly; dropout and initial weights do not show."""
    if given["_target_"] != wanted["_target_"]:
        return ["_target_"]
    hidden = ("_target_", "dropout", *INITIAL)
    return [key for key in given if key not in hidden and given[key] != wanted.get(key)]


def plainly(architecture: Architecture, keys: Iterable[str]) -> str:
    """Return ``U-Net with num_downs=8, base_channels=64``: its name and the values of ``keys``."""
    name = NAMES[architecture["_target_"]]
    values = ", ".join(
        f"{key}={architecture[key]}" for key in keys if key in architecture and key != "_target_"
    )
    return f"{name} with {values}" if values else name


# -------------------- into networks


def plain(config: Any, where: str) -> Architecture:
    """Return the architecture in a config that a file brought along; ``build`` decides whether it will do.

    Args:
        config: What the file holds; anything.
        where: The file to name.

    Raises:
        UserError: If it names no network at all.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("_target_"), str):
        raise UserError(f"{where}: its architecture names no network: {str(config)[:80]}")
    kept = {
        str(key): value for key, value in config.items() if key == "_target_" or not str(key).startswith("_")
    }
    # Synchronised batch norm is batch norm to all who do not train on several devices.
    return kept | {"norm": "batch"} if kept.get("norm") == "syncbatch" else kept


def network_class(architecture: Architecture, where: str) -> type[nn.Module]:
    """Return the class that ``architecture`` names.

    Raises:
        UserError: If it names anything but a network of this project, or an argument that it does not take.
    """
    target = architecture["_target_"]
    if not re.fullmatch(re.escape(PREFIX) + r"\w+(\.\w+)+", target):
        raise UserError(f"{where}: its architecture names no network of i2i_lightning: {target[:80]!r}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: there is no network {target} in this version of i2i_lightning") from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__.startswith(PREFIX)):
        raise UserError(f"{where}: {target} is not a network")
    known = inspect.signature(found).parameters
    for key, value in architecture.items():
        if key not in known and not key.startswith("_"):
            raise UserError(f"{where}: {name} has no argument {key} in this version of i2i_lightning")
        if not isinstance(value, (str, bool, int, float, list, tuple, type(None))):
            raise UserError(f"{where}: its architecture gives {key} a {type(value).__name__}")
    return found


def build(architecture: Architecture, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Build the network that ``architecture`` describes around the weights in ``state``.

    Neither memory nor random numbers are spent on initial weights. Half-precision weights become float32.

    Args:
        architecture: The constructor's arguments.
        state: Weights under this project's names, without a prefix.
        where: The file to name.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        UserError: If the weights are not those of this architecture, naming the first that differ.
    """
    network = outline(architecture, state, where)
    wanted = network.state_dict()
    wrong = [f"{key} is missing" for key in wanted if key not in state]
    wrong += [f"{key} is not part of it" for key in state if key not in wanted]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 2} more)" if len(wrong) > 2 else ""
        raise UserError(
            f"{where}: its weights are not those of a {describe(architecture)}\n{'; '.join(wrong[:2])}{more}"
        )
    network.load_state_dict(
        {
            key: value.to(torch.float32) if value.is_floating_point() else value
            for key, value in state.items()
        },
        assign=True,
    )
    return network.eval()


class _Undrawn(TorchFunctionMode):
    """Leave out random initial weights: on the meta device their first draw imports two seconds of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor as it is where ``func`` would draw into it, else do as ever."""
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def outline(architecture: Architecture, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Return the network without memory for its weights (on the meta device).

    Raises:
        UserError: If it cannot be built, or has more of anything than the weights in ``state`` can bear.
    """
    most = max([len(state), *(side for value in state.values() for side in value.shape)])
    for key, value in architecture.items():
        if isinstance(value, int) and abs(value) > most:
            raise UserError(f"{where}: its weights are not those of a network with {key}={value}")
    arguments = {key: value for key, value in architecture.items() if not key.startswith("_")}
    try:
        with torch.device("meta"), _Undrawn():
            return network_class(architecture, where)(**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}: its architecture cannot be built: {reason}") from error
