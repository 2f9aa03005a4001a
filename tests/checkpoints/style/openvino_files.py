"""Writing MobileStyleGAN as OpenVINO's model optimiser did, and computing what such a graph computes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.networks.mobile_stylegan import MobileStyleGAN

TYPES = {"f32": np.float32, "i64": np.int64, "i32": np.int32}


@dataclass
class Writer:
    """A graph under construction: each method adds layers and returns the id of the last."""

    name: str
    layers: list[ET.Element] = field(default_factory=list)
    edges: list[ET.Element] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)

    def layer(
        self, kind: str, inputs: Sequence[tuple[int, int] | int] = (), outputs: int = 1, **data: object
    ) -> int:
        number = len(self.layers)
        name = str(data.pop("name", f"{kind}_{number}"))
        layer = ET.Element("layer", id=str(number), name=name, type=kind, version="opset1")
        if data:
            ET.SubElement(layer, "data", {key: str(value) for key, value in data.items()})
        if inputs:
            ports = ET.SubElement(layer, "input")
            for port, source in enumerate(inputs):
                ET.SubElement(ports, "port", id=str(port), precision="FP32")
                from_layer, from_output = source if isinstance(source, tuple) else (source, 0)
                first = len(self.layers[from_layer].findall("input/port"))
                edge = {
                    "from-layer": str(from_layer),
                    "from-port": str(first + from_output),
                    "to-layer": str(number),
                    "to-port": str(port),
                }
                self.edges.append(ET.Element("edge", edge))
        if outputs:
            ports = ET.SubElement(layer, "output")
            for port in range(outputs):
                ET.SubElement(ports, "port", id=str(len(inputs) + port), precision="FP32")
        self.layers.append(layer)
        return number

    def const(self, values: object, kind: str = "f32", shape: Sequence[int] | None = None) -> int:
        array = np.array(values.detach().numpy() if isinstance(values, Tensor) else values, TYPES[kind])
        offset = len(self.raw)
        self.raw += array.tobytes()
        text = ", ".join(str(side) for side in (array.shape if shape is None else shape))
        return self.layer("Const", element_type=kind, shape=text, offset=offset, size=array.nbytes)

    def result(self, source: int) -> None:
        self.layer("Result", [source], outputs=0)

    def save(self, folder: Path) -> None:
        root = ET.Element("net", name=self.name, version="10")
        for tag, elements in (("layers", self.layers), ("edges", self.edges)):
            ET.SubElement(root, tag).extend(elements)
        ET.SubElement(ET.SubElement(root, "meta_data"), "MO_version", value="2021.4")
        (folder / f"{self.name}.xml").write_bytes(ET.tostring(root, xml_declaration=True))
        (folder / f"{self.name}.bin").write_bytes(bytes(self.raw))


def write(generator: MobileStyleGAN, folder: Path) -> None:
    """Write both networks of ``generator`` into ``folder``."""
    state = generator.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    _write_mapping(generator, state, folder)
    _write_synthesis(generator, state, folder)


def _write_mapping(generator: MobileStyleGAN, state: dict[str, Tensor], folder: Path) -> None:
    net = Writer("MappingNetwork")
    z = net.layer("Parameter", shape=f"1, {generator.z_dim}", element_type="f32")
    square = net.layer("Power", [z, net.const([[2.0]])])
    mean = net.layer("ReduceMean", [square, net.const([1], "i64")], keep_dims="true")
    root = net.layer("Power", [net.layer("Add", [mean, net.const([[1e-8]])]), net.const([[-0.5]])])
    x = net.layer("Multiply", [z, root])
    for index in range(generator.mapping.num_layers):
        weight, bias = (net.const(state[f"mapping.fc{index}.{part}"]) for part in ("weight", "bias"))
        x = net.layer("MatMul", [x, weight], transpose_a="false", transpose_b="true")
        x = net.layer("Add", [x, net.layer("Reshape", [bias, net.const([1, -1], "i64")])])
        x = net.layer("Multiply", [net.layer("PReLU", [x, net.const([0.2])]), net.const([[math.sqrt(2)]])])
    net.result(x)
    net.save(folder)


def _write_synthesis(generator: MobileStyleGAN, state: dict[str, Tensor], folder: Path) -> None:
    net = Writer("SynthesisNetwork")
    w = net.layer("Parameter", shape=f"1, {generator.w_dim}", element_type="f32")

    def styles(name: str, gain: float | None) -> int:
        weight, bias = (state[f"synthesis.{name}.{part}"] for part in ("weight", "bias"))
        x = net.layer("MatMul", [w, net.const(weight)], transpose_a="false", transpose_b="true")
        x = net.layer("Add", [x, net.const(bias[None])])
        x = net.layer("Reshape", [x, net.const([-1, len(bias), 1, 1], "i64")])
        return x if gain is None else net.layer("Multiply", [x, net.const(np.full((1, 1, 1, 1), gain))])

    def convolution(x: int, kind: str, weight: Tensor) -> int:
        pads = f"{weight.shape[-1] // 2}, {weight.shape[-1] // 2}"
        return net.layer(
            kind, [x, net.const(weight)], strides="1, 1", dilations="1, 1", pads_begin=pads, pads_end=pads
        )

    def convolved(x: int, name: str) -> int:
        own = {key: state.get(f"synthesis.{name}.{key}") for key in ("depthwise", "weight", "bias")}
        width = len(state[f"synthesis.{name}.affine.bias"])
        x = net.layer("Multiply", [styles(f"{name}.affine", 1 / math.sqrt(9 * width)), x])
        if own["depthwise"] is not None:
            x = convolution(x, "GroupConvolution", own["depthwise"][:, None])
        x = convolution(x, "Convolution", own["weight"])
        noise = state[f"synthesis.{name}.noise_const"] * state[f"synthesis.{name}.noise_strength"]
        x = net.layer("Add", [x, net.const(noise[None, None])])
        x = net.layer("Add", [x, net.const(own["bias"][None, :, None, None])])
        return net.layer("PReLU", [x, net.const([0.2])])

    def inverse_haar(x: int, width: int) -> int:
        half = math.sqrt(0.5)

        def stretch(source: int | tuple[int, int], sign: int, rows: bool) -> int:
            shape = (width, 1, 1, 2, 1) if rows else (width, 1, 1, 1, 2)
            kernel = np.tile([half, sign * half], width).reshape(shape)
            return net.layer(
                "GroupConvolutionBackpropData",
                [source, net.const(kernel)],
                strides="2, 1" if rows else "1, 2",
            )

        split = net.layer("VariadicSplit", [x, net.const(1, "i64"), net.const([width, -1], "i64")], outputs=2)
        # As in the published files, the height and width that are asked for are -1 or copied.
        shaped = net.layer("Reshape", [(split, 1), net.const([1, width, 3, size, size], "i64")])
        each = net.layer(
            "VariadicSplit", [shaped, net.const(2, "i64"), net.const([1, 1, 1], "i64")], outputs=3
        )
        rows, columns, across = (
            net.layer("Squeeze", [(each, index), net.const([2], "i64")]) for index in range(3)
        )
        left = net.layer("Add", [stretch((split, 0), 1, True), stretch(rows, -1, True)])
        right = net.layer("Add", [stretch(columns, 1, True), stretch(across, -1, True)])
        return net.layer("Add", [stretch(left, 1, False), stretch(right, -1, False)])

    size = 4
    x = net.const(state["synthesis.b4.const"][None])
    x = net.layer("Broadcast", [x, net.const([1, 1, 1, 1], "i64")], mode="bidirectional")
    x = net.layer("Tile", [x, net.const([1, 1, 1, 1], "i64")])
    x = convolved(x, "b4.conv1")
    for width in generator.config["widths"][:-1]:
        x = net.layer("Multiply", [styles(f"b{2 * size}.up", None), x])
        x = inverse_haar(x, width // 4)
        size *= 2
        x = convolved(convolved(x, f"b{size}.conv0"), f"b{size}.conv1")
    gain = 1 / math.sqrt(generator.config["widths"][-1])
    x = net.layer("Multiply", [styles("torgb.affine", gain), x])
    x = convolution(x, "Convolution", state["synthesis.torgb.weight"])
    x = net.layer("Add", [x, net.const(state["synthesis.torgb.bias"][None, :, None, None])])
    net.result(inverse_haar(x, generator.channels))
    net.save(folder)


def run(folder: Path, name: str, x: Tensor) -> Tensor:
    """Compute in float64 what the graph says, operation by operation; it knows nothing of our network."""
    root = ET.fromstring((folder / f"{name}.xml").read_bytes())
    raw = (folder / f"{name}.bin").read_bytes()
    sources: dict[str, list[tuple[int, str, str]]] = {}
    for edge in root.iterfind("edges/edge"):
        source = (int(edge.get("to-port", "")), edge.get("from-layer", ""), edge.get("from-port", ""))
        sources.setdefault(edge.get("to-layer", ""), []).append(source)
    layers = {layer.get("id", ""): layer for layer in root.iterfind("layers/layer")}
    values: dict[tuple[str, str], Tensor] = {}
    waiting = list(layers)
    while waiting:
        number = waiting.pop(0)
        needed = [(layer, port) for _, layer, port in sorted(sources.get(number, []))]
        if any(source not in values for source in needed):
            waiting.append(number)
            continue
        layer = layers[number]
        given = [values[source] for source in needed]
        if layer.get("type") == "Result":
            return given[0]
        data = layer.find("data")
        results = _compute(layer.get("type", ""), {} if data is None else data.attrib, given, raw, x)
        for port, result in zip(layer.iterfind("output/port"), results, strict=True):
            values[number, port.get("id", "")] = result
    raise AssertionError("the graph has no result")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")] if text.strip() else []


def _compute(kind: str, data: dict[str, str], given: list[Tensor], raw: bytes, x: Tensor) -> list[Tensor]:
    """Return the outputs of one operation."""
    if kind == "Parameter":
        return [x]
    if kind == "Const":
        shape, dtype = _numbers(data["shape"]), TYPES[data["element_type"]]
        array = np.frombuffer(raw, dtype, math.prod(shape), int(data["offset"])).reshape(shape)
        return [torch.tensor(array.astype(np.float64 if dtype == np.float32 else np.int64))]
    first, *others = given
    if kind in ("Add", "Multiply", "Power"):
        return [{"Add": torch.add, "Multiply": torch.mul, "Power": torch.pow}[kind](first, others[0])]
    if kind == "ReduceMean":
        return [first.mean(others[0].tolist(), keepdim=True)]
    if kind == "MatMul":
        return [first @ (others[0].t() if data["transpose_b"] == "true" else others[0])]
    if kind == "PReLU":
        return [torch.where(first > 0, first, others[0] * first)]
    if kind == "Reshape":
        return [first.reshape(others[0].tolist())]
    if kind == "ShapeOf":
        return [torch.tensor(first.shape)]
    if kind == "Gather":
        return [first.index_select(int(others[1]), others[0].reshape(-1)).reshape(others[0].shape)]
    if kind == "Unsqueeze":
        return [first.unsqueeze(int(others[0]))]
    if kind == "Squeeze":
        return [first.squeeze(int(others[0]))]
    if kind == "Concat":
        return [torch.cat(given, int(data["axis"]))]
    if kind == "Broadcast":
        return [first.expand(torch.broadcast_shapes(first.shape, others[0].tolist()))]
    if kind == "Tile":
        return [first.repeat(others[0].tolist())]
    if kind == "VariadicSplit":
        axis, parts = int(others[0]), others[1].tolist()
        rest = first.shape[axis] - sum(part for part in parts if part > 0)
        return list(first.split([part if part > 0 else rest for part in parts], axis))
    if kind == "Convolution":
        return [F.conv2d(first, others[0], padding=_numbers(data["pads_begin"]))]
    if kind == "GroupConvolution":
        return [
            F.conv2d(
                first, others[0].flatten(0, 1), padding=_numbers(data["pads_begin"]), groups=len(others[0])
            )
        ]
    if kind == "GroupConvolutionBackpropData":
        strides = _numbers(data["strides"])
        return [F.conv_transpose2d(first, others[0].flatten(0, 1), stride=strides, groups=len(others[0]))]
    raise AssertionError(f"no operation {kind}")
