"""MobileStyleGAN as it was published: two graphs of OpenVINO, ``MappingNetwork`` and ``SynthesisNetwork``.

Most constants have numbers for names, so that the weights are found by what is computed with them: from the
result back to the input, every operation has to be the one that the network has there. A file of this
architecture with other widths or depths is read too; any other graph is refused at the first layer that
differs.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from i2i_lightning.checkpoints.style.mean import mean_latent
from i2i_lightning.checkpoints.style.openvino import Graph, Node, read_graph
from i2i_lightning.checkpoints.style.values import Refused
from i2i_lightning.networks.mobile_stylegan import SLOPE, SMALLEST_PX, MobileStyleGAN
from i2i_lightning.types import UserError
from i2i_lightning.weights.store import verified

WEIGHTS = "ffhq_mobile_stylegan"
"""The name by which ``i2i-weights get`` fetches the generator of 1024 px faces."""
MAPPING, SYNTHESIS = "MappingNetwork", "SynthesisNetwork"
FILES = tuple(f"{name}.{ending}" for name in (MAPPING, SYNTHESIS) for ending in ("xml", "bin"))
MAX_LAYERS = 64
MAX_SIZE_PX = 4096
TOLERANCE = 1e-6
"""Relative, of what float32 made of constants such as sqrt(2)."""
HAAR_SIGNS = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))
"""Of LL, LH, HL and HH, in the pixels (0, 0), (0, 1), (1, 0) and (1, 1)."""

Array = NDArray[np.float32]
State = dict[str, Array]


def load_mobile(path: str | Path | None = None) -> MobileStyleGAN:
    """Load a published MobileStyleGAN in evaluation mode, in float32 on the CPU.

    The files have no mean latent. It is computed here: the mean of 10 000 mapped z, drawn with a fixed seed
    and mapped in float64, so that it is the same on every machine and so is the fingerprint.

    Args:
        path: A folder with ``MappingNetwork.{xml,bin}`` and ``SynthesisNetwork.{xml,bin}``, one of these
            files, or a zip archive that has them; None for the generator of 1024 px faces in the weights
            folder (``i2i-weights get ffhq_mobile_stylegan``), whose sha256 is checked.

    Raises:
        UserError: If it is not at hand, or not this network, whole.
    """
    place = verified(WEIGHTS) if path is None else Path(path).expanduser()
    if place.name in FILES:
        place = place.parent
    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    state, mapping_layers = _read_mapping(_Walk(read_graph(place, MAPPING)))
    synthesis, widths = _read_synthesis(_Walk(read_graph(place, SYNTHESIS)))
    state |= synthesis
    w_dim, z_dim = state["mapping.fc0.weight"].shape
    channels = len(state["synthesis.torgb.bias"]) // 4
    try:
        with torch.device("meta"):  # no random weights, only to lose them
            generator = MobileStyleGAN(widths, channels, z_dim, w_dim, mapping_layers)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    wanted = {key: tuple(value.shape) for key, value in generator.state_dict().items()}
    state["mapping.w_avg"] = np.zeros(w_dim, np.float32)
    for key in wanted:
        got = state[key].shape if key in state else None
        if got != wanted[key]:
            raise UserError(f"{place}: {key} has shape {got}, the layers around it want {wanted[key]}")
    generator = generator.to_empty(device="cpu").eval()
    generator.load_state_dict({key: torch.from_numpy(state[key].copy()) for key in wanted})
    try:
        generator.mapping.w_avg.copy_(mean_latent(generator.mapping, z_dim))
    except Refused as error:
        raise UserError(f"{place}: {error}") from None
    return generator


def is_mobile(path: str | Path) -> bool:
    """Return whether ``path`` may be what :func:`load_mobile` takes, going by the names of its files."""
    path = Path(path).expanduser()
    if path.is_dir():
        return (path / f"{SYNTHESIS}.xml").is_file()
    if not path.is_file():
        return False
    if path.name in FILES:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == f"{SYNTHESIS}.xml" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


class _Walk:
    """Takes a graph apart from its result on, and refuses what it does not expect.

    Args:
        graph: The network.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source = graph.only("Parameter")
        (self.end,) = self.operands(graph.only("Result"), "Result", 1)

    def refuse(self, node: Node, expected: str) -> NoReturn:
        """Raise ``UserError`` on a layer that is not ``expected``."""
        raise UserError(
            f"{self.graph.path}: not a MobileStyleGAN: layer {node.name} ({node.kind}), where"
            f" {expected} is expected"
        )

    def operands(self, node: Node, kind: str, number: int) -> list[Node]:
        """Return the first inputs of a node that has to be of a kind."""
        if node.kind != kind or len(node.inputs) < number:
            self.refuse(node, kind)
        return [source for source, _ in node.inputs[:number]]

    def constant(self, node: Node, rank: int | None = None) -> Array:
        """Return the numbers of a constant that has to have ``rank`` dimensions."""
        if node.kind != "Const":
            self.refuse(node, "Const")
        values = self.graph.values(node)
        if rank not in (None, values.ndim):
            self.refuse(node, "a constant" + (f" of {rank} dimensions" if rank else ""))
        return values

    def number(self, node: Node) -> float:
        """Return a constant of one number."""
        values = self.constant(node)
        if values.size != 1:
            self.refuse(node, "a single number")
        return float(values.reshape(()))

    def with_constant(self, node: Node, kind: str) -> tuple[Node, Node]:
        """Return x and the constant of ``x + constant`` or ``x * constant``."""
        first, second = self.operands(node, kind, 2)
        for operand, other in ((first, second), (second, first)):
            # A bias may be brought to the shape of the batch first.
            held = other.inputs[0][0] if other.kind == "Reshape" and other.inputs else other
            if held.kind == "Const":
                return operand, held
        return self.refuse(node, f"{kind} of a constant")

    def near(self, node: Node, got: float, wanted: float, what: str) -> None:
        """Refuse ``node`` unless its number is the one that the architecture has there."""
        if abs(got - wanted) > TOLERANCE * abs(wanted):
            self.refuse(node, f"{what} {wanted:.6g} (it is {got:.6g})")

    def product(self, node: Node) -> tuple[Node, Array]:
        """Return x and W ``(out, in)`` of ``W x``."""
        x, weight = self.operands(node, "MatMul", 2)
        if node.attributes.get("transpose_a", "false") != "false":
            self.refuse(node, "MatMul of rows")
        values = self.constant(weight, 2)
        return x, values if node.attributes.get("transpose_b", "false") == "true" else values.T

    def leaky(self, node: Node) -> Node:
        """Return the input of a leaky ReLU."""
        x, slope = self.operands(node, "PReLU", 2)
        self.near(node, self.number(slope), SLOPE, "a leaky ReLU of slope")
        return x

    def styles(self, node: Node) -> tuple[State, float] | None:
        """Return A, b and the gain of ``gain (A w + b)``, one number for each channel; None if it is not."""
        gain = 1.0
        if node.kind == "Multiply" and any(source.kind == "Const" for source, _ in node.inputs):
            node, factor = self.with_constant(node, "Multiply")
            gain = self.number(factor)
        if node.kind != "Reshape" or not node.inputs or node.inputs[0][0].kind != "Add":
            return None
        product, bias = self.with_constant(node.inputs[0][0], "Add")
        source, weight = self.product(product)
        if source is not self.source:
            self.refuse(source, "the input")
        return {"weight": weight, "bias": self.constant(bias).reshape(-1)}, gain

    def scaled(self, node: Node, gain: Callable[[int], float]) -> tuple[Node, State]:
        """Return x of ``x * styles``, and the styles' A and b; their gain has to be as their number wants."""
        first, second = self.operands(node, "Multiply", 2)
        for operand, other in ((first, second), (second, first)):
            found = self.styles(other)
            if found is not None:
                affine, factor = found
                self.near(other, factor, gain(len(affine["weight"])), "styles times")
                return operand, affine
        return self.refuse(node, "a product with styles")

    def convolution(self, node: Node, kind: str, rank: int) -> tuple[Node, Array]:
        """Return x and the weight of a convolution that keeps height and width."""
        x, weight = self.operands(node, kind, 2)
        values = self.constant(weight, rank)
        side = values.shape[-1]
        if values.shape[-2:] not in ((1, 1), (3, 3)):
            self.refuse(node, f"{kind} of 1x1 or 3x3")
        pads = {"pads_begin": side // 2, "pads_end": side // 2}
        for key, wanted in {"strides": 1, "dilations": 1, **pads}.items():
            if node.attributes.get(key, "").replace(" ", "") != f"{wanted},{wanted}":
                self.refuse(node, f"{kind} with {key} {wanted}, {wanted}")
        return x, values

    def layer(self, node: Node) -> tuple[Node, State]:
        """Return the input and the weights of a :class:`MobileLayer`."""
        x, bias = self.with_constant(self.leaky(node), "Add")
        x, noise = self.with_constant(x, "Add")
        x, weight = self.convolution(x, "Convolution", 4)
        state = {"weight": weight, "bias": self.constant(bias).reshape(-1)}
        if weight.shape[-1] == 1:
            groups = x
            x, depthwise = self.convolution(groups, "GroupConvolution", 5)
            if depthwise.shape[1:3] != (1, 1):
                self.refuse(groups, "a convolution of each channel by itself")
            state["depthwise"] = depthwise[:, 0]
        maps = self.constant(noise, 4)
        if maps.shape[:2] != (1, 1):
            self.refuse(noise, "one map of noise")
        state |= _unit_noise(maps[0, 0])
        x, affine = self.scaled(x, lambda width: 1 / math.sqrt(9 * width))
        return x, state | _under("affine", affine)

    def coefficients(self, node: Node) -> Node:
        """Return the Haar coefficients that ``node`` is the inverse transform of.

        It is two stretches of rows, added, for each of two stretches of columns, added.
        """
        signs: dict[int, tuple[int, ...]] = {}
        splits: list[Node] = []
        for outer in self.operands(node, "Add", 2):
            (rows_added, _), columns = self.stretch(outer, (1, 2))
            for inner in self.operands(rows_added, "Add", 2):
                (source, port), rows = self.stretch(inner, (2, 1))
                index = 0
                if source.kind == "Squeeze" and source.inputs:
                    # The differences lie behind each other, three for each channel.
                    source, which = source.inputs[0]
                    shaped = self.operands(source, "VariadicSplit", 1)[0]
                    self.operands(shaped, "Reshape", 1)
                    source, port = shaped.inputs[0]
                    index = 1 + which
                if source.kind != "VariadicSplit" or port != min(index, 1):
                    self.refuse(source, "a split into mean and differences")
                splits.append(source)
                signs[index] = tuple(row * column for row in rows for column in columns)
        if any(split is not splits[0] for split in splits) or signs != dict(enumerate(HAAR_SIGNS)):
            self.refuse(node, "an inverse Haar transform")
        return self.operands(splits[0], "VariadicSplit", 1)[0]

    def stretch(self, node: Node, shape: tuple[int, int]) -> tuple[tuple[Node, int], tuple[int, int]]:
        """Return the input of a stretch to twice the height or width, and the signs of its kernel."""
        _, kernel = self.operands(node, "GroupConvolutionBackpropData", 2)
        values = self.constant(kernel, 5)
        strides = f"{shape[0]},{shape[1]}"
        if (
            values.shape[1:] != (1, 1, *shape)
            or node.attributes.get("strides", "").replace(" ", "") != strides
        ):
            self.refuse(node, f"a stretch by {strides}")
        self.near(node, float(np.abs(values).max()), math.sqrt(0.5), "a Haar kernel of")
        self.near(node, float(np.abs(values).min()), math.sqrt(0.5), "a Haar kernel of")
        first, second = np.sign(values.reshape(-1, 2)).astype(int).T
        if np.ptp(first) or np.ptp(second):
            self.refuse(node, "one kernel for all channels")
        return node.inputs[0], (int(first[0]), int(second[0]))


def _read_mapping(walk: _Walk) -> tuple[State, int]:
    """Return the weights of the mapping, and how many layers it has."""
    layers: list[State] = []
    x = walk.end
    while len(layers) <= MAX_LAYERS:
        activation, gain = walk.with_constant(x, "Multiply")
        walk.near(x, walk.number(gain), math.sqrt(2), "a leaky ReLU times")
        total, bias = walk.with_constant(walk.leaky(activation), "Add")
        x, weight = walk.product(total)
        layers.append({"weight": weight, "bias": walk.constant(bias).reshape(-1)})
        if x.kind == "Multiply" and any(source is walk.source for source, _ in x.inputs):
            break
    else:
        walk.refuse(x, f"at most {MAX_LAYERS} dense layers")
    state: State = {}
    for index, layer in enumerate(reversed(layers)):
        state |= _under(f"mapping.fc{index}", layer)
    return state, len(layers)


def _read_synthesis(walk: _Walk) -> tuple[State, list[int]]:
    """Return the weights of the synthesis, and its channels from 4 px on."""
    x, bias = walk.with_constant(walk.coefficients(walk.end), "Add")
    x, weight = walk.convolution(x, "Convolution", 4)
    torgb: State = {"weight": weight, "bias": walk.constant(bias).reshape(-1)}
    x, affine = walk.scaled(x, lambda width: 1 / math.sqrt(width))
    torgb |= _under("affine", affine)
    blocks: list[State] = []
    while True:
        x, conv1 = walk.layer(x)
        while x.kind in ("Tile", "Broadcast"):  # the constant, once for each image
            x = walk.operands(x, x.kind, 1)[0]
        if x.kind == "Const":
            break
        x, conv0 = walk.layer(x)
        x, up = walk.scaled(walk.coefficients(x), lambda width: 1.0)
        blocks.append(_under("up", up) | _under("conv0", conv0) | _under("conv1", conv1))
        if SMALLEST_PX * 2 ** (len(blocks) + 1) > MAX_SIZE_PX:
            walk.refuse(x, f"at most {MAX_SIZE_PX} px")
    const = walk.constant(x, 4)
    state = _under("synthesis.b4", {"const": const[0]} | _under("conv1", conv1))
    widths = [const.shape[1]]
    for level, block in enumerate(reversed(blocks)):
        state |= _under(f"synthesis.b{SMALLEST_PX * 2 ** (level + 1)}", block)
        widths.append(len(block["conv1.bias"]))
    return state | _under("synthesis.torgb", torgb), widths


def _under(name: str, state: Mapping[str, Any]) -> State:
    return {f"{name}.{key}": value for key, value in state.items()}


def _unit_noise(map_: Array) -> State:
    """Return noise of mean square 1 and the strength that makes it the stored map again."""
    strength = np.float32(np.sqrt(np.square(map_, dtype=np.float64).mean()))
    unit = map_ / strength if strength > 0 else np.zeros_like(map_)
    return {"noise_const": unit, "noise_strength": np.array(strength, np.float32)}
