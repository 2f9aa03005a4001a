"""OpenVINO's intermediate representation, version 10 and 11: a graph in XML, its constants in one raw file.

The XML is read with entities and document types refused, and everything is bounded; nothing in either file
can run.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from i2i_lightning.types import UserError

MAX_XML_BYTES = 16 * 2**20
MAX_BIN_BYTES = 2**30
MAX_DEPTH = 16
MAX_ELEMENTS = 400_000
VERSIONS = ("10", "11")
"""They differ in run-time attributes alone."""


class _Refused(ValueError):
    """Why a file is not read, without its name."""


@dataclass(eq=False)
class Node:
    """One layer of the graph.

    Args:
        name: Its name in the file.
        kind: Its operation, ``Const``, ``MatMul`` and so on.
        attributes: Attributes of its ``data`` element.
        inputs: Where each comes from: a node, and which of its outputs, counted from 0.
    """

    name: str
    kind: str
    attributes: Mapping[str, str]
    inputs: list[tuple[Node, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Graph:
    """A network as the file has it.

    Args:
        path: The XML file, for messages.
        nodes: All layers.
        constants: Bytes of the raw file.
    """

    path: str
    nodes: tuple[Node, ...]
    constants: bytes

    def only(self, kind: str) -> Node:
        """Return the one layer of a kind.

        Raises:
            UserError: If there is none or more than one.
        """
        found = [node for node in self.nodes if node.kind == kind]
        if len(found) != 1:
            raise UserError(f"{self.path}: has {len(found)} layers {kind}, one is expected")
        return found[0]

    def values(self, node: Node) -> NDArray[np.float32]:
        """Return the numbers of a ``Const`` layer of float32, of the shape that the file states.

        Raises:
            UserError: If it holds other numbers, lies outside of the raw file, or is not finite.
        """
        try:
            kind = node.attributes.get("element_type", "")
            if kind != "f32":
                raise _Refused(f"holds {kind or 'no type'}, float32 (f32) is expected")
            shape = _whole_numbers(node.attributes.get("shape", ""))
            offset = _whole_number(node.attributes.get("offset", ""))
            size = _whole_number(node.attributes.get("size", ""))
            if size == 0 or size != 4 * math.prod(shape):
                raise _Refused(f"has {size} B for the shape {list(shape)}")
            if offset + size > len(self.constants):
                end = len(self.constants)
                raise _Refused(f"is at {offset} to {offset + size} of a raw file of {end} B: it is not whole")
        except _Refused as error:
            raise UserError(f"{self.path}: constant {node.name} {error}") from None
        values = np.frombuffer(self.constants, "<f4", math.prod(shape), offset).reshape(shape)
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: constant {node.name} has values that are not finite")
        return values


def read_graph(path: Path, name: str) -> Graph:
    """Read one network.

    Args:
        path: A folder, or a zip archive such as a wheel, with ``<name>.xml`` and ``<name>.bin`` in it.
        name: Name of both files without the ending; in an archive they may lie in any folder.

    Raises:
        UserError: If they are missing, broken, too large or something else.
    """
    where = f"{path}: {name}.xml" if path.is_file() else str(path / f"{name}.xml")
    try:
        read = _archive(path) if path.is_file() else _folder(path)
        text = read(f"{name}.xml", MAX_XML_BYTES)
        nodes = _nodes(_parse(text))
        return Graph(where, nodes, read(f"{name}.bin", MAX_BIN_BYTES))
    except _Refused as error:
        raise UserError(f"{where}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _folder(path: Path) -> Callable[[str, int], bytes]:
    def read(name: str, limit: int) -> bytes:
        file = path / name
        if not file.is_file():
            raise _Refused("no such file" if name.endswith(".xml") else f"{name} is not beside it")
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
        return _bounded(content, name, limit)

    return read


def _archive(path: Path) -> Callable[[str, int], bytes]:
    def read(name: str, limit: int) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                found = [entry for entry in archive.infolist() if entry.filename.split("/")[-1] == name]
                if len(found) != 1:
                    raise _Refused(f"the archive has {len(found)} files {name}, one is expected")
                # What the entry says of its size may be a lie: no more is unpacked than may be.
                with archive.open(found[0]) as opened:
                    content = opened.read(limit + 1)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
            raise _Refused(f"the archive is not whole ({error})") from None
        return _bounded(content, name, limit)

    return read


def _bounded(content: bytes, name: str, limit: int) -> bytes:
    if len(content) > limit:
        raise _Refused(f"{name} is larger than {limit} B")
    return content


def _parse(text: bytes) -> ET.Element:
    """Return the tree of an XML file that has no document type, and so no entities of its own."""
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    depth = count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_DEPTH or count > MAX_ELEMENTS:
            raise _Refused("is nested deeper or longer than networks are")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def doctype(*_: object) -> NoReturn:
        raise _Refused("has a document type, which networks have not")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, _Refused):
            raise
        raise _Refused(f"not a whole XML file ({error})") from None
    return builder.close()


def _nodes(root: ET.Element) -> tuple[Node, ...]:
    """Return the layers, connected."""
    if root.tag != "net" or root.find("layers") is None or root.find("edges") is None:
        raise _Refused(f"not a network of OpenVINO: its root is {root.tag[:40]!r}")
    if root.get("version") not in VERSIONS:
        raise _Refused(
            f"is of version {str(root.get('version'))[:40]!r} of OpenVINO's representation;"
            f" {' and '.join(VERSIONS)} are read here"
        )
    nodes: dict[str, Node] = {}
    ports: dict[tuple[str, str], int] = {}
    for layer in root.iterfind("layers/layer"):
        number, data = layer.get("id", ""), layer.find("data")
        outputs = [port.get("id", "") for port in layer.iterfind("output/port")]
        if number in nodes:
            raise _Refused(f"has two layers of the id {number[:40]!r}")
        # Names stand in messages of one line.
        name, kind = (" ".join(layer.get(key, "").split())[:80] for key in ("name", "type"))
        nodes[number] = Node(name, kind, {} if data is None else data.attrib)
        ports |= {(number, port): index for index, port in enumerate(outputs)}
    incoming: dict[str, list[tuple[int, str, str]]] = {}
    for edge in root.iterfind("edges/edge"):
        port = _whole_number(edge.get("to-port", ""))
        source = (edge.get("from-layer", ""), edge.get("from-port", ""))
        if source not in ports or edge.get("to-layer") not in nodes:
            raise _Refused(f"has an edge from {source[0][:40]!r} that connects nothing")
        incoming.setdefault(edge.get("to-layer", ""), []).append((port, *source))
    for number, sources in incoming.items():
        nodes[number].inputs = [(nodes[source], ports[source, port]) for _, source, port in sorted(sources)]
    return tuple(nodes.values())


def _whole_number(text: str) -> int:
    numbers = _whole_numbers(text)
    if len(numbers) != 1:
        raise _Refused(f"has {text[:40]!r} where one whole number belongs")
    return numbers[0]


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of ``1, 512``; none of an empty text."""
    if not re.fullmatch(r"\s*(\d{1,18}\s*(,\s*\d{1,18}\s*){0,7})?", text, re.ASCII):
        raise _Refused(f"has {text[:40]!r} where whole numbers belong")
    return tuple(int(number) for number in text.split(",") if number.strip())
