"""Write a trained network anew: reference layout, safetensors, TorchScript, ONNX, or a checkpoint of ours.

TorchScript and ONNX hold the same program, ``deployable``: float32 images (N, C, H, W) in [-1, 1] in, the
same out. It is compared with the network it was made of before the file gets its name.
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from i2i_lightning import __version__
from i2i_lightning.checkpoints.architecture import build
from i2i_lightning.checkpoints.contents import HEADER, SavedNetwork, TestMode, header_of
from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.checkpoints.reference import to_reference
from i2i_lightning.types import UserError

Format = Literal["reference", "safetensors", "torchscript", "onnx", "lightning"]

SUFFIXES: dict[str, Format] = {
    ".pth": "reference",
    ".safetensors": "safetensors",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".onnx": "onnx",
    ".ckpt": "lightning",
}

OPSET = 17
"""ONNX operators of 2022, which every runtime of today has."""
TOLERANCE = 1e-4
"""Largest difference between an exported program and the network it was made of, on outputs in [-1, 1]."""
LEAST_PX = 16
"""Sides of the images that programs are made and compared with are at least this long."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        path: The file.
        bytes: Its size.
        notes: What its user should know, one sentence each.
    """

    path: Path
    bytes: int
    notes: tuple[str, ...]


# -------------------- weights


def write_reference(network: SavedNetwork, path: Path, origin: str) -> Written:
    """Write the weights in the layout of the reference project: a plain ``state_dict`` of one network.

    Args:
        network: The network; its ``state`` is written.
        path: Where to.
        origin: The file it comes from, for messages.

    Raises:
        UserError: If the reference has no such network, or the file cannot be written.
    """
    build(network.architecture, network.state, origin)
    state = to_reference(network.architecture, network.state, origin)
    # Copies, because torch.save writes the whole memory that a view looks into.
    state = {key: value.clone() for key, value in state.items()}
    write_beside(path, lambda file: torch.save(state, file))
    notes = []
    if network.architecture.get("dropout") == "paper":
        notes.append(
            "the layout does not say where dropout stands; the reference puts it elsewhere (dropout=paper)"
        )
    if network.architecture.get("num_downs", 5) < 5:
        notes.append("the reference builds U-Nets of 5 halvings and more; it cannot load this one")
    return _written(path, notes)


def write_safetensors(network: SavedNetwork, path: Path, origin: str) -> Written:
    """Write the weights under our names as safetensors, described by JSON in the header's metadata.

    Raises:
        UserError: If the weights are not those of the architecture, or the file cannot be written.
    """
    build(network.architecture, network.state, origin)
    # Separate copies: the format knows no two names of one memory.
    state = {key: value.contiguous().clone() for key, value in network.state.items()}
    described = json.dumps(header_of(network, Path(origin).name))
    content = to_safetensors(state, {"format": "pt", HEADER: described})
    write_beside(path, content)
    return _written(path)


def write_checkpoint(networks: list[SavedNetwork], path: Path, origin: str) -> Written:
    """Write a checkpoint of ours that holds ``networks``: to translate with, and to begin training from.

    Raises:
        UserError: If weights are not those of their architecture, or the file cannot be written.
    """
    state: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    directions: dict[str, Any] = {}
    for network in networks:
        build(network.architecture, network.state, origin)
        name = network.name
        if name in config:
            raise UserError(
                f"{origin}: it holds several networks for {name}; say which by network= and direction="
            )
        config[name] = dict(network.architecture)
        state |= {f"{name}.{key}": value for key, value in network.state.items()}
        if network.average is not None:
            state |= {f"averages.{name}.{key}": value for key, value in network.average.items()}
        if network.role == "generator":
            into, out = network.formats()
            directions[network.direction or "ab"] = {
                "generator": name,
                "input": into.to_dict(),
                "output": out.to_dict(),
            }
    generators = [network for network in networks if network.role == "generator"] or networks
    first = generators[0]
    checkpoint = {
        "state_dict": state,
        "method_config": {**config, "test_mode": first.test_mode, "z_dim": first.z_dim},
        "translation": {
            "directions": directions,
            "test_mode": first.test_mode,
            "z_dim": first.z_dim,
            "size_px": first.size_px and list(first.size_px),
        },
        "made_from": Path(origin).name,
    }
    write_beside(path, lambda file: torch.save(checkpoint, file))
    return _written(path, ["it holds networks alone: warm_start= takes it, resume= does not"])


def _written(path: Path, notes: list[str] | None = None) -> Written:
    return Written(path, path.stat().st_size, tuple(notes or ()))


# -------------------- programs


class ImageNorm(nn.Module):
    """Batch norm by the statistics of each image itself: what test mode ``train`` does with one image.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, mean and biased variance over height and width.

    Args:
        norm: The batch norm whose weight, bias and eps to take.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x (N, C, H, W)`` normalised; needs more than one pixel."""
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class Program(nn.Module):
    """A network for use outside of training, as it is exported: no checks, no noise of its own.

    Args:
        network: The network, which becomes part of the program.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.takes_z = bool(getattr(network, "z_channels", 0))

    def forward(self, image: Tensor, z: Tensor | None = None) -> Tensor:
        """Translate ``image (N, C, H, W)``, by the noise ``z (N, z_channels)`` if the network takes one."""
        out: Tensor = self.network(image, z) if self.takes_z else self.network(image)
        return out


def deployable(network: nn.Module, test_mode: TestMode) -> Program:
    """Return a deterministic program of ``network``: dropout off, norms as in ``test_mode``.

    In test mode ``train`` batch norms take the statistics of each image, whatever batch it is in; in ``eval``
    they take the running ones. Dropout is noise and off in both.

    Args:
        network: A generator; a copy of it is taken.
        test_mode: ``train`` or ``eval``.
    """
    program = Program(copy.deepcopy(network).float()).eval().requires_grad_(False)
    # Sizes are not checked inside: a traced check would hold for the example's size alone.
    program.network.check_size = _no_check  # type: ignore[assignment]
    if test_mode == "train":
        for module in list(program.modules()):
            for name, child in module.named_children():
                if isinstance(child, _BatchNorm):
                    setattr(module, name, ImageNorm(child))
    return program.eval()


def _no_check(height: int, width: int) -> None:
    """Take any size."""


def describe_program(network: nn.Module, saved: SavedNetwork, origin: str) -> dict[str, Any]:
    """Return what a user of the exported program needs to know, as plain values."""
    into, out = saved.formats()
    multiple = int(getattr(network, "size_multiple", 1))
    return {
        "producer": f"i2i_lightning {__version__}",
        "made_from": Path(origin).name,
        "direction": saved.direction or "ab",
        "input": into.to_dict(),
        "output": out.to_dict(),
        "layout": "NCHW",
        "channel_order": {1: "grey", 3: "RGB", 4: "RGBA"}.get(into.channels, "as in training"),
        "dtype": "float32",
        "range": [-1.0, 1.0],
        "mean": 0.5,
        "std": 0.5,
        "normalisation": "x / 255 for 8 bit or x / 65535 for 16 bit, minus mean, divided by std",
        "size_multiple": multiple,
        "size_px": saved.size_px and list(saved.size_px),
        "z_dim": saved.z_dim,
        "test_mode": saved.test_mode,
        "norms": _norms_in_words(network, saved.test_mode),
        "dropout": "off",
        "architecture": saved.architecture,
    }


def _norms_in_words(network: nn.Module, test_mode: TestMode) -> str:
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return "each image's own statistics, or none"
    return "each image's own statistics" if test_mode == "train" else "running statistics"


def write_torchscript(saved: SavedNetwork, path: Path, origin: str) -> Written:
    """Write a generator as a TorchScript program; its description is the extra file ``metadata.json``.

    Raises:
        UserError: If it is not a generator, disagrees with the network, or cannot be written.
    """
    network, program = _program(saved, origin, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch would rather have torch.export
        traced = torch.jit.trace(program, _example(network, saved, 1, 2), check_trace=False)  # type: ignore[no-untyped-call]
        content = io.BytesIO()
        described = json.dumps(describe_program(network, saved, origin))
        torch.jit.save(traced, content, _extra_files={"metadata.json": described})
        content.seek(0)
        loaded = torch.jit.load(content, map_location="cpu")  # type: ignore[no-untyped-call]
    difference = _compare(network, saved, path, lambda *inputs: loaded(*inputs))
    write_beside(path, content.getvalue())
    return _written(path, _program_notes(network, saved, difference))


def write_onnx(saved: SavedNetwork, path: Path, origin: str) -> Written:
    """Write a generator as an ONNX program of any batch and size; its description is in its metadata.

    Raises:
        UserError: If a package is missing, it is not a generator, disagrees with the network, or cannot be
            written.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path}: ONNX files need the package {error.name}: pip install 'i2i_lightning[export]'"
        ) from error
    network, program = _program(saved, origin, path)
    inputs = ["image", "z"] if program.takes_z else ["image"]
    sides = {0: "batch", 2: "height", 3: "width"}
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The exporter by tracing: it is the one that gives the same dynamic sizes in torch 2.6 as in today's,
        # needs no further package, and takes a tenth of the time.
        torch.onnx.export(
            program,
            _example(network, saved, 1, 2),
            cast(Any, content),
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=["output"],
            dynamic_axes={"image": sides, "output": sides} | ({"z": {0: "batch"}} if program.takes_z else {}),
        )
    model = onnx.load_from_string(content.getvalue())
    model.producer_name, model.producer_version = "i2i_lightning", __version__
    described = describe_program(network, saved, origin) | {"opset": OPSET}
    onnx.helper.set_model_props(
        model,
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()},
    )
    onnx.checker.check_model(model)
    serialized = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(inputs, given, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    difference = _compare(network, saved, path, run)
    write_beside(path, serialized)
    return _written(path, _program_notes(network, saved, difference))


def _program(saved: SavedNetwork, origin: str, path: Path) -> tuple[nn.Module, Program]:
    if saved.role != "generator":
        raise UserError(f"{path}: a discriminator is of no use as a program; write .pth or .safetensors")
    network = build(saved.architecture, saved.state, origin)
    return network, deployable(network, saved.test_mode)


def _example(network: nn.Module, saved: SavedNetwork, batch: int, multiples: int) -> tuple[Tensor, ...]:
    """Return inputs for ``network``: images in [-1, 1] by draws of their own, and z if it takes one."""
    multiple = int(getattr(network, "size_multiple", 1))
    unit = multiple * math.ceil(LEAST_PX / multiple)
    height, width = multiples * unit, (multiples + 1) * unit
    draws = torch.Generator().manual_seed(0)
    shape = (batch, int(saved.architecture["in_channels"]), height, width)
    image = torch.rand(shape, generator=draws) * 2 - 1
    return (image, torch.randn(batch, saved.z_dim, generator=draws)) if saved.z_dim else (image,)


@torch.no_grad()
def _compare(network: nn.Module, saved: SavedNetwork, path: Path, program: Callable[..., Tensor]) -> float:
    """Return the largest difference of ``program`` from the network itself, at another batch and size.

    The network is asked image by image in the test mode it is meant for, dropout aside.

    Raises:
        UserError: If they disagree.
    """
    inputs = _example(network, saved, 2, 1)
    expected = torch.cat(
        [_eager(network, saved.test_mode, *(value[n : n + 1] for value in inputs)) for n in range(2)]
    )
    outputs = program(*inputs)
    difference = float((outputs - expected).abs().max()) if outputs.shape == expected.shape else float("nan")
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: not written: the exported program differs from the network by {difference:.2g}, "
            f"more than {TOLERANCE:g}"
        )
    return difference


def _eager(network: nn.Module, test_mode: TestMode, *inputs: Tensor) -> Tensor:
    """Run ``network`` itself on one image in ``test_mode``, without dropout; it is left as it was."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train(test_mode == "train")
        norm.track_running_stats = test_mode != "train"
    try:
        out: Tensor = network(*inputs)
    finally:
        for norm in norms:
            norm.eval()
            norm.track_running_stats = True
    return out


def _program_notes(network: nn.Module, saved: SavedNetwork, difference: float) -> list[str]:
    multiple = int(getattr(network, "size_multiple", 1))
    dropout = saved.test_mode == "train" and any(
        isinstance(module, nn.Dropout) for module in network.modules()
    )
    sizes = f"of sides that are multiples of {multiple} px" if multiple > 1 else "of any size"
    norms = _norms_in_words(network, saved.test_mode)
    return [
        f"takes float32 NCHW in [-1, 1], any batch, {sizes}; norms by {norms}; "
        f"dropout off{', which test mode train would have on' if dropout else ''}",
        f"largest difference from the network itself: {difference:.1e}",
    ]
