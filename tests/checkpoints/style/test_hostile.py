"""Pickles that want to run something, to fill the memory, or that are broken: one line each, no more.

Every file below is opened by ``load_style_generator`` while an audit hook watches for anything that runs, and
its memory is counted.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from i2i_lightning.checkpoints import load_style_discriminator, load_style_generator
from i2i_lightning.checkpoints.style.contents import Weights
from i2i_lightning.checkpoints.style.machine import MAX_OPERATIONS
from i2i_lightning.checkpoints.style.stand_ins import NAMES
from i2i_lightning.checkpoints.style.values import Array, Refused, Storage
from i2i_lightning.types import UserError
from tests.checkpoints.style import peers

MIB = 1 << 20
STYLEGAN2 = "i2i_lightning.networks.stylegan2.generator.StyleGAN2Generator"
SPARE_BYTES = 24 * MIB
"""What a file may take beside a small multiple of its own size."""
COUNTED_BYTES = 1 << 17
"""Size of a file up to which its memory is counted one by one; counting takes time."""


# -------------------- assembling pickles


PROTO = b"\x80\x04"


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*arguments) + b"R"


def data(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(*parts: bytes) -> bytes:
    return PROTO + b"".join(parts) + b"."


def legacy(obj: bytes, keys: bytes = b"]", tail: bytes = b"", system: bytes | None = None) -> bytes:
    """What torch.save wrote before 2020, around a pickled object."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    described = system or pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    return magic + pickle.dumps(1001, 2) + described + whole(obj) + whole(keys) + tail


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(count), b"N") + b"Q"


def one_storage(count: int = 4, tail: bytes | None = None, obj: bytes | None = None) -> bytes:
    """What a tensor's numbers are inside of a plain pickle."""
    content = struct.pack("<q", count) + bytes(4 * min(count, 64)) if tail is None else tail
    return legacy(obj or storage(count=count), b"](" + text("0") + b"e", content)


def tensor(shape: bytes, strides: bytes, offset: bytes = b"K\x00", held: bytes | None = None) -> bytes:
    loaded = call("torch.storage", "_load_from_bytes", data(held or one_storage()))
    return call("torch._utils", "_rebuild_tensor_v2", loaded, offset, shape, strides, b"\x89", b"}")


def array(shape: bytes, kind: bytes, content: bytes, fortran: bytes = b"\x89") -> bytes:
    made = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", data(b"b"))
    return made + tuple_of(b"K\x01", shape, kind, fortran, content) + b"b"


def dtype(code: str = "f4", order: str = "<") -> bytes:
    state = tuple_of(b"K\x03", text(order), b"N", b"N", b"N", number(-1), number(-1), b"K\x00")
    return call("numpy", "dtype", text(code), b"\x89", b"\x88") + state + b"b"


def as_variable(value: bytes) -> bytes:
    """A network of TensorFlow's with two variables, the second of which says what it is."""
    variables = b"](" + text("dlatent_avg") + value + b"\x86"
    variables += text("synthesis/4x4/Conv/mod_weight") + b"N\x86e"
    state = dict_of(version=b"K\x04", static_kwargs=b"}", components=b"}", variables=variables)
    return name("dnnlib.tflib.network", "Network") + b")\x81" + state + b"b"


def as_module(**state: bytes) -> bytes:
    """A module of NVIDIA's with a state."""
    meta = dict_of(
        type=text("class"),
        version=b"K\x06",
        module_src=text(""),
        class_name=text("G"),
        state=dict_of(**state),
    )
    return call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)


def archive(obj: bytes, files: dict[str, bytes] | None = None, level: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, around a pickled object."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", level) as made:
        made.writestr("archive/data.pkl", whole(obj))
        made.writestr("archive/version", b"3\n")
        for path, held in (files or {}).items():
            made.writestr(f"archive/{path}", held)
    return content.getvalue()


# -------------------- what wants to run


DANGEROUS = """
os.system posix.system nt.system os.popen os.execv os.fork os.remove os.spawnl subprocess.Popen
subprocess.run subprocess.check_output builtins.eval builtins.exec builtins.compile
builtins.__import__ builtins.getattr builtins.setattr builtins.open builtins.print builtins.input
builtins.breakpoint builtins.globals builtins.vars builtins.map builtins.filter builtins.type
builtins.object builtins.dict builtins.super __builtin__.eval __builtin__.apply operator.attrgetter
operator.methodcaller operator.itemgetter functools.partial functools.reduce itertools.starmap
importlib.import_module importlib.reload runpy.run_path runpy._run_code code.interact pty.spawn
shutil.rmtree pathlib.Path io.open socket.socket ctypes.CDLL pickle.loads pickle.load _pickle.loads
marshal.loads types.FunctionType types.CodeType types.MethodType copyreg._reconstructor
copyreg.__newobj__ copyreg.add_extension copy_reg._reconstructor torch.load torch.jit.load
torch.hub.load torch.serialization.load torch.package.PackageImporter
torch._utils._import_dotted_name torch.utils.collect_env.run torch.nn.Module numpy.load
numpy.fromfile numpy.memmap numpy.ctypeslib.load_library numpy.testing._private.utils.runstring
numpy.core.multiarray.fromfile numpy._core.multiarray.fromstring webbrowser.open sys.exit
signal.alarm threading.Thread multiprocessing.Process tempfile.mktemp bdb.Bdb cProfile.run
timeit.timeit doctest.debug_script unittest.main asyncio.run pip.main dnnlib.util.call_func_by_name
dnnlib.util.get_obj_by_name dnnlib.tflib.tfutil.run torch_utils.persistence._src_to_module
torch_utils.persistence.import_hook torch_utils.misc.constant training.networks.Generator __main__.x
collections.deque collections.defaultdict argparse.ArgumentParser argparse.FileType
"""
DOTTED = (
    ("torch_utils", "persistence._reconstruct_persistent_obj"),
    ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"),
    ("dnnlib.util", "EasyDict.__init__"),
    ("numpy", "ndarray.tofile"),
    ("numpy", "dtype.type"),
    ("collections", "OrderedDict.fromkeys"),
    ("", "os.system"),
    ("torch.storage", ""),
    ("torch.storage\r", "_load_from_bytes"),
)
CANARY = "canary"
"""A file that would be there if something ran."""


def running() -> Iterator[tuple[str, bytes, str]]:
    command = text(f"touch {CANARY}")
    for path in DANGEROUS.split():
        module, _, attribute = path.rpartition(".")
        told = f"refused: it names {path}; nothing of it was run"
        yield f"call {path}", whole(call(module, attribute, command)), told
        stacked = text(module) + text(attribute) + b"\x93" + tuple_of(command) + b"R"
        yield f"stacked {path}", whole(stacked), told
    for module, attribute in DOTTED:
        yield f"dotted {module!r} {attribute}", whole(call(module, attribute, command)), "refused: it names"
    evil = call("os", "system", command)
    told = "refused: it names os.system"
    places = {
        "before the object": evil + b"0}",
        "in a list": b"](" + evil + b"e",
        "in a dict": dict_of(G_ema=evil),
        "as a key": b"}" + evil + b"Ns",
        "as a module": dict_of(G_ema=as_module(_modules=dict_of(mapping=evil))),
        "as a weight": dict_of(G_ema=as_module(_parameters=dict_of(weight=evil))),
        "as module_src": call(
            "torch_utils.persistence", "_reconstruct_persistent_obj", dict_of(module_src=evil)
        ),
        "as a variable": as_variable(evil),
        "as the numbers of an array": as_variable(array(b"K\x01\x85", dtype(), evil)),
        "as a dtype": as_variable(array(b"K\x01\x85", evil, data(bytes(4)))),
        "as a storage": call("torch._utils", "_rebuild_tensor_v2", evil, b"K\x00", b")", b")", b"\x89", b"}"),
        "inside of a storage": call("torch.storage", "_load_from_bytes", data(one_storage(obj=evil))),
        "as the magic of a storage": call("torch.storage", "_load_from_bytes", data(whole(evil))),
        "as the machine of a storage": call(
            "torch.storage", "_load_from_bytes", data(legacy(storage(), system=whole(evil)))
        ),
        "as the keys of a storage": call("torch.storage", "_load_from_bytes", data(legacy(storage(), evil))),
        "as a persistent id": evil + b"Q",
        "as a namespace": name("argparse", "Namespace") + b")\x81" + dict_of(path=evil) + b"b",
    }
    for place, held in places.items():
        yield f"system {place}", whole(held), told
        yield f"system {place}, in an archive", archive(held), told
        yield f"system {place}, of before 2020", legacy(held), told
    nested = call("torch.storage", "_load_from_bytes", data(one_storage()))
    yield (
        "a load inside of a load",
        whole(call("torch.storage", "_load_from_bytes", data(one_storage(obj=nested)))),
        "it names torch.storage._load_from_bytes",
    )
    inst = b"(" + command + b"ios\nsystem\n"
    yield "inst", whole(inst), "opcode b'i'"
    yield "obj", whole(b"(" + name("argparse", "Namespace") + b"o"), "opcode b'o'"
    yield "newobj_ex", whole(name("argparse", "Namespace") + b")}\x92"), "opcode b'\\x92'"
    for opcode, argument in ((b"\x82", b"\x01"), (b"\x83", b"\x01\x00"), (b"\x84", b"\x01\x00\x00\x00")):
        yield f"extension {opcode!r}", whole(opcode + argument), "opcode"
    yield "persistent text", whole(b"Pos.system\n"), "opcode b'P'"
    yield "persistent", whole(text("os.system") + b"Q"), "persistent id"
    yield "next buffer", whole(b"\x97"), "opcode b'\\x97'"


# -------------------- what wants memory, or never to end


def greedy() -> Iterator[tuple[str, bytes, str]]:
    early = "it ends early, or names a length"
    for code, width in ((b"B", 4), (b"X", 4), (b"\x8e", 8), (b"\x8d", 8), (b"\x96", 8), (b"\x95", 8)):
        for length in (2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1):
            if length < 1 << (8 * width):
                yield f"length {length} of {code!r}", whole(code + length.to_bytes(width, "little")), early
    for length in (17, 2**20, 2**31 - 1, 2**32 - 1):
        yield f"number of {length} bytes", whole(b"\x8b" + struct.pack("<I", length)), "a whole number of"
    yield "number of 255 bytes", whole(b"\x8a\xff" + bytes(255)), "a whole number of 255 bytes"
    puts = b"".join(b"Nr" + struct.pack("<I", 2**32 - 1 - index) + b"0" for index in range(2000))
    yield "memo at its end", whole(puts + b"N"), "no style-based generator"
    yield "memo never filled", whole(b"j" + struct.pack("<I", 2**31)), "a value that it did not have"
    deep = 30_000
    yield "lists in lists", whole(b"]" * deep + b"a" * (deep - 1)), "no style-based generator"
    yield "tuples in tuples", whole(b")" + b"\x85" * deep), "no style-based generator"
    yield "dicts in dicts", whole((b"}" + text("a")) * deep + b"N" + b"s" * deep), "no style-based generator"
    yield "marks in marks", whole(b"(" * deep + b"t" * deep), "containers inside each other"
    laughs = b"(lq\x00" + b"".join(
        b"(h%c" % level + (b"h%c" % level) * 9 + b"lq%c" % (level + 1) for level in range(40)
    )
    yield "a billion laughs of lists", whole(laughs), "no style-based generator"
    pairs = b"".join(b"h%ch%c\x86q%c0" % (level, level, level + 1) for level in range(60))
    tuples = b")q\x000" + pairs + b"h\x3c"
    yield "a billion laughs of tuples", whole(tuples), "no style-based generator"
    yield "and their hash", whole(b"}" + tuples + b"Ns"), "a key that is neither"
    modulus = sys.hash_info.modulus
    alike = b"".join(b"\x8a\x0b" + (index * modulus).to_bytes(11, "little") + b"N" for index in range(20_000))
    yield "keys of one hash", whole(b"}(" + alike + b"u"), f"a key beyond {modulus - 1}"
    for key in (modulus, -modulus, 2**63 - 1, -(2**63)):
        yield f"the key {key}", whole(b"}" + number(key) + b"Ns"), f"a key beyond {modulus - 1}"
    yield (
        "the keys next to it",
        whole(b"}(" + number(modulus - 1) + b"N" + number(1 - modulus) + b"Nu"),
        "no style",
    )
    yield "a list in itself", whole(b"]q\x00h\x00a"), "no style-based generator"
    yield "too long a program", whole(b"N0" * MAX_OPERATIONS + b"N"), f"more than {MAX_OPERATIONS} operations"
    yield "many lists", whole(b"]" * (MAX_OPERATIONS + 1)), f"more than {MAX_OPERATIONS} operations"
    yield "many empty modules", whole(dict_of(G_ema=b"](" + as_module() * 200 + b"e")), "no style-based"
    latin = text("x" * 100_000) + b"q\x00" + b"0"
    encoded = b"".join(call("_codecs", "encode", b"h\x00", text("latin1")) for _ in range(400))
    yield "bytes made again and again", whole(latin + encoded), "makes more bytes than it has"
    # Modules in modules, by hand: each holds the next one twice.
    modules = b"".join(
        as_module(_parameters=b"}", _buffers=b"}", _modules=dict_of(a=b"h%c" % level, b=b"h%c" % level))
        + b"q%c0" % (level + 1)
        for level in range(30)
    )
    first = as_module(_parameters=b"}", _buffers=b"}", _modules=b"}") + b"q\x000"
    yield "a billion modules", whole(first + modules + dict_of(G_ema=b"h\x1e")), "modules"
    inner = as_module(_parameters=b"}", _buffers=b"}", _modules=b"h\x00")
    circle = b"}q\x00" + text("a") + inner + b"q\x01s0"
    yield "a module in itself", whole(circle + dict_of(G_ema=b"h\x01")), "modules"
    parts = b"}q\x00" + text("a") + name("dnnlib.tflib.network", "Network") + b")\x81q\x01"
    parts += dict_of(version=b"K\x04", static_kwargs=b"}", variables=b"]", components=b"h\x00") + b"bs0"
    yield "a network in itself", whole(parts + b"h\x01"), "its part"
    kind = dtype()
    for shape in ((10**12,), (2**31, 2**31), (2**62,), (10**6, 10**6), (-1,), (1,) * 40, (2**40, 0)):
        held = tuple_of(*map(number, shape))
        made = array(held, kind, data(bytes(8)))
        yield f"array of {shape[:3]}", whole(as_variable(made)), "refused: it has an"
        strides = tuple_of(*(number(0) for _ in shape))
        yield f"tensor of {shape[:3]}", whole(tensor(held, strides)), "refused: "
    for count in (2**20, 2**31, 2**40, 2**62):
        yield f"storage of {count}", whole(tensor(b")", b")", held=one_storage(count))), "refused: "
        packed = archive(storage(count=count), {"data/0": bytes(16)})
        yield f"storage of {count} in an archive", packed, "refused: "
    views = (((4,), (2,), 0), ((2,), (1,), 3), ((1,), (1,), 4), ((2, 2), (2**30, 1), 0))
    for shape, strides, offset in views:
        held = tuple_of(*map(number, shape)), tuple_of(*map(number, strides)), number(offset)
        yield f"tensor {shape} {strides} at {offset}", whole(tensor(*held)), "refused: a tensor"
    yield "negative strides", whole(tensor(number(2) + b"\x85", number(-1) + b"\x85")), "impossible shape"
    yield "negative offset", whole(tensor(number(2) + b"\x85", b"K\x01\x85", number(-2))), "impossible shape"
    deflated = archive(b"}", {"data/0": bytes(64 * MIB)}, zipfile.ZIP_DEFLATED)
    yield "a compressed archive", deflated, "is compressed"
    listed = bytearray(archive(b"}"))
    listed[-10:-6] = struct.pack("<I", 2**31)
    yield "a long table of contents", bytes(listed), "too large a table of contents"
    yield from loadable()


def loadable() -> Iterator[tuple[str, bytes, str]]:
    """Files whose every part is in order, of networks that take far more memory than they have numbers."""

    def rosinality(size_px: int, width: int, maps: bool) -> dict[str, Any]:
        widths = {4 << level: width for level in range(size_px.bit_length() - 2)}
        return peers.RosinalityGenerator(size_px, 2, 1, widths, maps).state_dict()

    def saved(state: dict[str, Any], **others: Any) -> bytes:
        content = io.BytesIO()
        torch.save({"g_ema": state} | others, content)
        return content.getvalue()

    mean = torch.zeros(2)
    for size_px in (2048, 8192):
        told = f"they are drawn for up to 1024 px, not {size_px}"
        yield f"maps of {size_px} px to draw", saved(rosinality(size_px, 1, False), latent_avg=mean), told
    grown = dict(peers.lernapparat_state(peers.stylegan1()))
    for size_px in (32, 64, 128, 256, 512, 1024, 2048):
        grown |= {
            name.replace("16x16", f"{size_px}x{size_px}"): value
            for name, value in list(grown.items())
            if ".16x16." in name
        }
    content = io.BytesIO()
    torch.save(grown, content)
    yield "maps of a StyleGAN1 to draw", content.getvalue(), "they are drawn for up to 1024 px, not 2048"
    for dtype in (torch.float32, torch.bfloat16):
        plain = rosinality(64, 64, True)
        numbers = torch.zeros(max(value.numel() for value in plain.values()), dtype=dtype)
        shared = {
            name: value if name.endswith(".kernel") else numbers[: value.numel()].view(value.shape)
            for name, value in plain.items()
        }
        yield f"one storage for all weights, {dtype}", saved(shared, latent_avg=mean), "they share numbers"
        held = {
            "method_config": {"generator": {"_target_": STYLEGAN2, "size_px": 64}},
            "state_dict": {f"generator.{name}": value for name, value in shared.items()},
        }
        content = io.BytesIO()
        torch.save(held, content)
        yield f"and in a checkpoint, {dtype}", content.getvalue(), "they share numbers"
    wide = rosinality(8, 1, True)
    wide["style.1.weight"] = torch.zeros(2, 8192)
    yield "a long z without a mean", saved(wide), "latents of up to 1024 numbers, not 8192"


# -------------------- what is broken


@cache
def valid(kind: str) -> bytes:
    """Return a whole file of a peer."""
    folder = Path(peers.__file__).parent
    content = io.BytesIO()
    if kind == "nvidia":
        with peers.modules(peers.PEERS):
            held = {"G_ema": peers.nvidia_generator(peers.stylegan2(8, channel_base=16, channel_max=4))}
            return pickle.dumps(held, 4)
    if kind == "tensorflow":
        with peers.modules(peers.PEERS):
            network = peers.tf_stylegan2(peers.stylegan2(8, channel_base=16, channel_max=4))
            return pickle.dumps((network,) * 3, 4)
    assert folder.name == "style"
    torch.manual_seed(0)
    generator = peers.RosinalityGenerator(8, 12, 2, {4: 4, 8: 2})
    held = {"g_ema": generator.state_dict(), "latent_avg": torch.zeros(12)}
    torch.save(held, content, _use_new_zipfile_serialization=kind == "rosinality")
    return content.getvalue()


def cut() -> Iterator[tuple[str, bytes, str]]:
    for kind, count in (("nvidia", 16), ("tensorflow", 12), ("rosinality", 8), ("before 2020", 8)):
        content = valid(kind)
        for part in range(count):
            end = len(content) * part // count
            yield f"{kind} cut at {end}", content[:end], "refused: "
        yield f"{kind} without its last byte", content[:-1], "refused: "


@cache
def nvidia_parts() -> dict[str, Any]:
    root = peers.nvidia_generator(peers.stylegan2(8, channel_base=16, channel_max=4))
    modules = root.state["_modules"]
    blocks = modules["synthesis"].state["_modules"]
    return {
        "root": root.state,
        "mapping": modules["mapping"].state,
        "fc0": modules["mapping"].state["_modules"]["fc0"].state,
        "b8": blocks["b8"].state,
        "conv0": blocks["b8"].state["_modules"]["conv0"].state,
        "torgb": blocks["b8"].state["_modules"]["torgb"].state,
        "": root,
    }


def pickled(held: object) -> bytes:
    with peers.modules(peers.PEERS):
        return pickle.dumps(held, 4)


def lacking() -> Iterator[tuple[str, bytes, str]]:
    parts = nvidia_parts()
    places = [
        *(("root", key) for key in ("_modules", "_parameters", "_buffers")),
        *(("fc0", key) for key in ("_modules", "_parameters", "_buffers", "bias_gain", "activation")),
        *(("conv0", key) for key in ("_parameters", "conv_clamp", "use_noise", "activation")),
        ("torgb", "conv_clamp"),
        ("b8", "architecture"),
    ]
    for place, key in places:
        kept = parts[place].pop(key)
        yield f"{place} without {key}", pickled({"G_ema": parts[""]}), "not loaded: "
        for value in (-1e300, {1: 2}, np.zeros(2)):
            parts[place][key] = value
            yield f"{place} with {key}={value!r:.12}", pickled({"G_ema": parts[""]}), "not loaded: "
        parts[place][key] = kept
    weights = [
        ("fc0", "_parameters", "weight"),
        ("conv0", "_parameters", "weight"),
        ("mapping", "_buffers", "w_avg"),
        ("conv0", "_buffers", "noise_const"),
        ("conv0", "_buffers", "resample_filter"),
    ]
    for place, room, key in weights:
        kept = parts[place][room][key]
        wrong: list[Any] = [
            None,
            3.5,
            "x",
            torch.zeros(3),
            torch.zeros(0),
            torch.zeros(2, 2, 2, 2, 2),
            torch.zeros(1, dtype=torch.int64),
            np.array([object()]),
        ]
        for value in wrong:
            parts[place][room][key] = value
            told = "refused" if isinstance(value, np.ndarray) else "not loaded: "
            allowed = key in ("resample_filter", "w_avg") and value is None  # as good as none
            if not allowed:
                yield f"{place}.{key}={value!r:.20}", pickled({"G_ema": parts[""]}), told
        parts[place][room][key] = kept
    extra = parts["conv0"]["_parameters"]
    extra["shoes"] = torch.zeros(2)
    yield "a weight too many", pickled({"G_ema": parts[""]}), "no part of the network"
    del extra["shoes"]
    parts[""].version = 5
    yield "another version", pickled({"G_ema": parts[""]}), "of version 5"
    parts[""].version = 6
    for held in ({"G_ema": None}, {"G": 3}, {}, [], (), {"G_ema": {}}, 5, "x", None, {"g_ema": {}}, [[]]):
        yield f"holds {held!r}", pickled(held), "no style-based generator"
    for held in ({"g_ema": {"conv1.conv.modulation.weight": 1}}, {"conv1.conv.modulation.weight": "x"}):
        yield f"holds {held!r}", pickled(held), "not loaded: "
    tensorflow = [
        ("version", b"K\x09"),
        ("version", text("4")),
        ("static_kwargs", b"N"),
        ("components", b"]"),
        ("components", dict_of(mapping=b"N")),
        ("variables", b"N"),
        ("variables", b"](Ne"),
        ("variables", b"](NN\x86e"),
        ("variables", b"](" + text("dlatent_avg") + b"N\x86e"),
        ("variables", b"](" + text("synthesis/4x4/Conv/mod_weight") + b"N\x86e"),
    ]
    for key, value in tensorflow:
        state = {"version": b"K\x04", "static_kwargs": b"}", "components": b"}", "variables": b"]"}
        state[key] = value
        network = name("dnnlib.tflib.network", "Network") + b")\x81" + dict_of(**state) + b"b"
        yield f"a network with {key}={value!r}", whole(network), "not loaded: "
    bare = name("dnnlib.tflib.network", "Network") + b")\x81"
    yield "a network without a state", whole(bare), "not loaded: "


def odd() -> Iterator[tuple[str, bytes, str]]:
    for protocol in (0, 1, 6, 255):
        yield f"protocol {protocol}", bytes([0x80, protocol]) + b"}.", "protocol"
    for held in (b"", b".", b"\x80", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), b"\x89PNG\r\n", bytes(64)):
        yield f"content {held[:8]!r}", held, "refused: "
    arguments = {
        "nothing": b")",
        "a number": b"K\x07\x85",
        "nine nothings": tuple_of(*[b"N"] * 9),
        "texts": tuple_of(text("x"), text("y"), text("z")),
        "no tuple": b"]",
        "itself": b"2\x85",
    }
    harmless = {"collections.OrderedDict", "builtins.bytes", "__builtin__.bytes"}
    for (module, attribute), known in NAMES.items():
        for what, held in arguments.items():
            if held.startswith(b"2") or (what == "nothing" and known.path in harmless):
                continue
            yield f"{known.path} with {what}", whole(name(module, attribute) + held + b"R"), "refused: "
        if known.make is None:
            yield f"a new {known.path}", whole(name(module, attribute) + b")\x81"), "makes a new"
    yield "a state for a list", whole(b"]}b"), "gives a list a state"
    yield "a state for a name", whole(name("numpy", "ndarray") + b"}b"), "a state"
    twice = name("argparse", "Namespace") + b")\x81}b}b"
    yield "a state twice", whole(twice), "a state"
    yield "keys for a list", whole(b"](K\x01K\x02u"), "sets keys of what is no dict"
    yield "a key without a value", whole(b"}(K\x01u"), "sets keys"
    yield "values for a dict", whole(b"}(K\x01e"), "appends to what is no list"
    for key in (b"N", b"\x88", b")", b"]", b"}", b"G" + bytes(8), data(b"x")):
        yield f"the key {key!r}", whole(b"}" + key + b"Ns"), "a key that is neither"
    for code in ("O8", "O", "V4", "U3", "S3", "M8", "m8", "c8", "f16", "f3", "<f4,i4", "x" * 500):
        told = "Python objects" if code.startswith("O") else "unknown kind"
        yield f"dtype {code[:8]}", whole(as_variable(array(b"K\x01\x85", dtype(code), data(bytes(4))))), told
    kind = call("numpy", "dtype", text("f4"), b"\x89", b"\x88")
    fields = b"](" + text("a") + b"e"
    record = kind + tuple_of(b"K\x03", text("|"), b"N", fields, b"}", b"K\x04", b"K\x04") + b"b"
    yield "dtype of records", whole(as_variable(array(b"K\x01\x85", record, data(bytes(4))))), "records"
    yield "array of a list", whole(as_variable(array(b"K\x01\x85", dtype(), b"]"))), "numbers are a list"
    yield "array of a text", whole(as_variable(array(b"K\x01\x85", dtype(), text("aaaa")))), "whose numbers"
    yield "array that is too short", whole(as_variable(array(b"K\x05\x85", dtype(), data(bytes(4))))), "agree"
    unset = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b")", b"N")
    yield "array never described", whole(as_variable(unset)), "does not describe"
    yield (
        "array of another class",
        whole(call("numpy.core.multiarray", "_reconstruct", name("argparse", "Namespace"), b")", b"N")),
        "of the class argparse.Namespace",
    )
    for encoding in ("utf-8", "rot13", "hex", "zlib", "unicode_escape", "idna"):
        yield f"encoded as {encoding}", whole(call("_codecs", "encode", text("x"), text(encoding))), "encodes"
    yield "encoded what is not latin", whole(call("_codecs", "encode", text("€"), text("latin1"))), "refused"
    yield "a text that is none", whole(b"X\x02\x00\x00\x00\xff\xfe"), "not UTF-8"
    yield "a name without an end", whole(b"c" + b"x" * 5000), "name without an end"
    yield "a name that is no text", whole(b"K\x01K\x02\x93"), "a name that is no text"
    yield "big-endian", legacy(b"}", system=pickle.dumps({"little_endian": False}, 2)), "order of bytes"
    yield "no machine", legacy(b"}", system=pickle.dumps([], 2)), "order of bytes"
    yield "keys that nothing has", legacy(b"}", b"](" + text("0") + b"e"), "not what torch.save writes"
    yield "numbers that are not there", legacy(storage()), "lacks numbers of a tensor"
    yield "numbers of another count", one_storage(4, struct.pack("<q", 5) + bytes(20)), "lacks numbers"
    yield "no storage of ours", legacy(storage("UntypedStorage")), "it names torch.UntypedStorage"
    two = b"(" + storage(count=4) + storage(count=5) + b"l"
    yield "a storage of two sizes", archive(two, {"data/0": bytes(40)}), "in two ways"
    yield "an archive without numbers", archive(storage()), "lacks numbers of a tensor"
    yield "a program of torch", archive(b"}", {"code/__torch__.py": b"x"}), "TorchScript"
    yield "an archive of two", archive(b"}") + archive(b"}"), ""
    yield "an archive of another", _plain_archive(), "not of torch.save"
    wrong = bytearray(archive(storage(), {"data/0": bytes(range(16))}))
    wrong[wrong.index(bytes(range(16)))] ^= 1
    yield "a flipped bit", bytes(wrong), "checksum"


def _plain_archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("hello.txt", "hello")
    return content.getvalue()


CASES: list[tuple[str, bytes, str]] = []
for generate in (running, greedy, cut, lacking, odd):
    CASES += generate()  # type: ignore[operator]
BUNDLE = 5
"""Files of one test: of so many, the tests' own time would be the most of it."""


# -------------------- the tests


FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "exec"),
    *("compile", "socket.connect", "shutil.rmtree", "os.remove", "ctypes.dlopen", "code.__new__", "import"),
}
"""Events of Python's own audit that no reading of a file may cause."""
watched: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watched is not None and event in FORBIDDEN:
        watched.append(f"{event} {arguments!r:.80}")


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all files, with everything imported that reading takes."""
    made = tmp_path_factory.mktemp("hostile")
    for kind in ("nvidia", "tensorflow", "rosinality", "before 2020"):
        path = made / f"whole-{kind.replace(' ', '-')}"
        path.write_bytes(valid(kind))
        load_style_generator(path)
        path.unlink()
    b"x".decode("cp437")  # of zip archives
    yield made
    assert not list(made.rglob("*"))


def opened(path: Path, load: Callable[[Path], object]) -> tuple[str | None, int]:
    """Return the message that opening a file ends in, None for none, and the most memory that it took."""
    global watched
    counts = path.stat().st_size < COUNTED_BYTES
    if counts:
        tracemalloc.start()
    watched = []
    try:
        load(path)
    except UserError as error:
        message = str(error)
    else:
        message = None
    finally:
        seen, watched = watched, None
        peak = tracemalloc.get_traced_memory()[1] if counts else 0
        tracemalloc.stop()
    assert not seen, seen
    return message, peak


def test_there_are_enough_of_them() -> None:
    assert len(CASES) > 700
    assert len({what for what, _, _ in CASES}) == len(CASES)


def check(
    path: Path, content: bytes, told: str, load: Callable[[Path], object] = load_style_generator
) -> None:
    """Open a file that must not be opened."""
    path.write_bytes(content)
    try:
        message, peak = opened(path, load)
    finally:
        path.unlink()
    assert message is not None
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 250
    assert told in message
    assert peak < SPARE_BYTES + 16 * len(content)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("first", range(0, len(CASES), BUNDLE), ids=lambda first: CASES[first][0])
def test_one_line_and_nothing_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.chdir(folder)
    for what, content, told in CASES[first : first + BUNDLE]:
        try:
            check(folder / "hostile.pkl", content, told)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error


def test_every_opcode_by_itself(folder: Path) -> None:
    for opcode in range(256):
        check(folder / "opcode.pkl", PROTO + bytes([opcode]), "refused: ")
        check(folder / "opcode.pkl", PROTO + bytes([opcode]) + b".", "")
        check(folder / "opcode.pkl", PROTO + bytes([opcode]) * 3 + b"\0" * 16 + b".", "")


@pytest.mark.parametrize("place", ["as a module", "as a weight", "inside of a storage"])
def test_for_the_discriminator_too(folder: Path, place: str) -> None:
    content = next(case[1] for case in CASES if case[0] == f"system {place}")
    check(folder / "d.pkl", content, "refused: it names os.system", load_style_discriminator)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "safetensors", "zip"])
def test_under_other_names(folder: Path, suffix: str) -> None:
    """Whatever its name leads one to expect, and whichever reader that is."""
    check(folder / f"g.{suffix}", whole(call("os", "system", text(f"touch {CANARY}"))), "")


def test_source_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is whole and is loaded; what upstream would run of it stays a text."""
    canary = tmp_path / CANARY
    monkeypatch.setattr(peers, "SOURCE", f"open({str(canary)!r}, 'w').close()\n")
    first = peers.write_nvidia(tmp_path / "a.pkl", peers.stylegan2())
    second = peers.write(tmp_path / "b.pkl", (peers.tf_stylegan2(peers.stylegan2()),) * 3)
    for path in (first, second):
        assert str(canary).encode() in path.read_bytes()
        load_style_generator(path)  # warm
        message, _ = opened(path, load_style_generator)
        assert message is None
    assert not canary.exists()
    with peers.modules(peers.PEERS), first.open("rb") as file:
        pickle.load(file)
    assert canary.exists(), "a reader that trusts the file would have run it"


@pytest.mark.parametrize("kind", ["nvidia", "tensorflow", "rosinality", "before 2020"])
def test_flipped_bits(folder: Path, kind: str) -> None:
    """A file with a wrong byte is read, or told to be wrong; where a checksum is, it is told."""
    draws, content = random.Random(0), valid(kind)
    path, told = folder / "flipped", 0
    for _ in range(25):
        # The opcodes stand more at the beginning, the numbers all over.
        position = int(len(content) * draws.random() ** 2)
        flipped = bytearray(content)
        flipped[position] ^= 1 << draws.randrange(8)
        path.write_bytes(flipped)
        message, _ = opened(path, load_style_generator)
        path.unlink()
        told += message is not None
        assert message is None or (message.startswith(f"{path}: ") and "\n" not in message)
    assert told > 2


LIMITED = """
import resource, sys
from pathlib import Path
from i2i_lightning.checkpoints import load_style_discriminator, load_style_generator
from i2i_lightning.types import UserError
folder, spare = Path(sys.argv[1]), int(sys.argv[2])
paths = sorted(folder.iterdir())
largest = max(path.stat().st_size for path in paths)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + spare + largest
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in paths:
    try:
        load_style_generator(path)
    except UserError as error:
        assert "\\n" not in str(error)
        assert "damaged (" not in str(error), error
    else:
        raise SystemExit(f"{path} was loaded")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process as Linux does")
def test_memory_of_a_process(tmp_path: Path) -> None:
    """All files that want memory, one after another, in a process that could not give it."""
    for index, (_, content, _) in enumerate(greedy()):
        (tmp_path / f"{index:03}.pkl").write_bytes(content)
    spare = 256 * MIB
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(spare)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 160


# -------------------- numbers that several names share


def of_storage(
    count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, kind: str = "<f4"
) -> Array:
    held = Storage(kind, count)
    held.data = memoryview(bytes(held.nbytes))
    return Array.of(held, offset, shape, strides)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 2), (1, 1)), ((3,), (0,)), ((2, 3), (3, 0)), ((3, 2), (2, 2)), ((2, 3), (2, 1))],
)
def test_no_element_comes_twice(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with pytest.raises(Refused, match="has an element twice"):
        of_storage(100, shape, strides)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        *(((2, 3), (3, 1)), ((3, 2), (1, 3)), ((1, 5), (0, 1)), ((5, 1), (1, 1)), ((2, 3), (10, 3))),
        *(((), ()), ((0, 4), (0, 0)), ((1, 1), (0, 0)), ((2, 1, 3), (3, 3, 1))),
    ],
)
def test_what_torch_lays_out_is_read(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    assert of_storage(20, shape, strides).values.shape == shape


def test_bfloat16_is_read_where_it_is_looked_at() -> None:
    """Of many small views of a long storage, none takes all of it."""
    numbers = torch.arange(4096, dtype=torch.float32).bfloat16()
    storage = Storage("bfloat16", 4096, memoryview(numbers.view(torch.uint8).numpy().tobytes()))
    view = Array.of(storage, 100, (3, 2), (1, 3))
    assert np.array_equal(view.values, numbers[100:106].view(2, 3).t().float().numpy())
    assert view.extent()[1] - view.extent()[0] == 12
    assert view.values.base is None or view.values.base.nbytes == 24


def test_weights_may_not_be_the_same_numbers() -> None:
    buffer = np.zeros(100, np.float16)
    Weights({"a": Array(buffer), "b": Array(buffer[:50]), "c": Array()})
    with pytest.raises(Refused, match="would take 1200 bytes and are made of 200: they share numbers"):
        Weights({name: Array(buffer.reshape(10, 10)) for name in "abc"})
    apart = np.zeros((3, 100), np.float16)
    Weights({name: Array(row) for name, row in zip("abc", apart, strict=True)})
