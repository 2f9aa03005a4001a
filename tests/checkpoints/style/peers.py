"""Files as the peers write them: their classes' pickles, their names, their layouts, from facts alone.

The classes below exist while a file is written, under the names that the peers' have. What upstream would run
on reading (``module_src``) is in the files too.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from i2i_lightning.networks.stylegan1 import StyleGAN1Generator
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator

SOURCE = "raise SystemExit('the source code in a file was run')\n"
FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


# -------------------- networks with weights like trained ones


def fill(network: nn.Module, seed: int = 0) -> None:
    """Give every weight a value at about its usual scale, those too that begin at zero."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            noise = torch.randn(value.shape, generator=draws)
            if name.endswith(("noise_strength", "noise_weight", "w_avg")) or (
                name.endswith("bias") and "affine" not in name
            ):
                scale = 20.0 if "mapping.fc" in name else 0.3
                value.copy_(noise * scale)
            elif name.endswith("affine.bias"):
                value.copy_(1 + 0.2 * noise)
            elif "mapping.fc" in name:
                value.copy_(noise * 100)
            else:
                value.copy_(noise)


def stylegan2(size_px: int = 16, **arguments: Any) -> StyleGAN2Generator:
    settings = {"z_dim": 12, "w_dim": 12, "mapping_layers": 3, "channel_base": 64, "channel_max": 8}
    generator = StyleGAN2Generator(size_px, **settings | arguments)
    fill(generator)
    return generator.eval()


def discriminator(size_px: int = 16, **arguments: Any) -> StyleGAN2Discriminator:
    settings = {"channel_base": 64, "channel_max": 8}
    network = StyleGAN2Discriminator(size_px, **settings | arguments)
    fill(network, 1)
    return network.eval()


def stylegan1(size_px: int = 16, **arguments: Any) -> StyleGAN1Generator:
    settings = {"z_dim": 12, "w_dim": 12, "mapping_layers": 3, "channel_base": 64, "channel_max": 8}
    generator = StyleGAN1Generator(size_px, **settings | arguments)
    fill(generator)
    return generator.eval()


# -------------------- modules of the peers, for as long as a file is written


@contextmanager
def modules(names: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let ``pickle`` find objects under the modules of a peer."""
    made = {}
    for path, content in names.items():
        for end in [len(path), *(index for index, letter in enumerate(path) if letter == ".")]:
            made.setdefault(path[:end], ModuleType(path[:end]))
        for name, value in content.items():
            value.__module__, value.__qualname__, value.__name__ = path, name, name
            setattr(made[path], name, value)
    kept = {path: sys.modules.get(path) for path in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for path, module in kept.items():
            if module is None:
                del sys.modules[path]
            else:
                sys.modules[path] = module


class EasyDict(dict):  # type: ignore[type-arg]
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _reconstruct_persistent_obj(meta: Any) -> Any:
    exec(meta["module_src"])


class Persistent:
    """A module of ``torch_utils.persistence``: it is saved as a call with everything in the argument."""

    def __init__(self, class_name: str, state: dict[str, Any], version: int = 6) -> None:
        self.class_name, self.state, self.version = class_name, state, version

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": self.version,
            "module_src": SOURCE,
            "class_name": self.class_name,
            "state": self.state,
        }
        return _reconstruct_persistent_obj, (meta,), None, None, None


class Network:
    """A network of ``dnnlib.tflib``."""

    def __init__(self, **state: Any) -> None:
        self.held = state

    def __getstate__(self) -> dict[str, Any]:
        return self.held

    def __setstate__(self, state: dict[str, Any]) -> None:
        exec(state["build_module_src"])


PEERS: Mapping[str, Mapping[str, Any]] = {
    "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
    "dnnlib.util": {"EasyDict": EasyDict},
    "dnnlib.tflib.network": {"Network": Network},
}


def write(path: Path, held: Any, protocol: int = 4) -> Path:
    """Pickle ``held`` as the peers do."""
    with modules(PEERS):
        path.write_bytes(pickle.dumps(held, protocol=protocol))
    return path


# -------------------- NVIDIA, PyTorch


CLASSES = {
    "mapping": "MappingNetwork",
    "synthesis": "SynthesisNetwork",
    "torgb": "ToRGBLayer",
    "conv0": "SynthesisLayer",
    "conv1": "SynthesisLayer",
}


def _attributes(module: nn.Module, path: str, clamp: float | None, layout: str) -> dict[str, Any]:
    """Return what NVIDIA's classes keep beside the weights."""
    name = path.rpartition(".")[2]
    kept: dict[str, Any] = {}
    if name.startswith("fc") or name in ("affine", "embed", "out"):
        rate = np.float64(module.weight_gain) * np.sqrt(module.weight.shape[1])
        kept = {
            "activation": getattr(module, "activation", "linear"),
            "weight_gain": np.float64(module.weight_gain),
            "bias_gain": float(rate) if rate != 1 else 1,
        }
    elif name in ("conv0", "conv1", "conv", "fromrgb", "skip"):
        kept = {
            "activation": "lrelu",
            "conv_clamp": clamp,
            "up": 1,
            "use_noise": True,
            "act_gain": np.sqrt(2),
        }
    elif name == "torgb":
        kept = {"conv_clamp": clamp, "weight_gain": np.float64(module.weight_gain)}
    elif name.startswith("b") and name[1:].isdigit():
        kept = {"architecture": layout, "use_fp16": False, "resolution": int(name[1:])}
    return kept


def persistent(
    module: nn.Module, path: str = "", clamp: float | None = None, layout: str = "skip"
) -> Persistent:
    """Return a network of ours as one of NVIDIA's."""
    buffers = {name: value.clone() for name, value in module.named_buffers(recurse=False)}
    if isinstance(module, StyleGAN2Discriminator) or path == "mapping":
        buffers = {} if layout != "skip" else buffers  # the label's mapping has no mean
    name = path.rpartition(".")[2]
    if name in ("conv0", "conv1", "skip") or (name.startswith("b") and name[1:].isdigit()):
        buffers["resample_filter"] = FILTER.clone()
    parameters: dict[str, nn.Parameter | None] = {
        key: nn.Parameter(value.detach().clone(), requires_grad=False)
        for key, value in module.named_parameters(recurse=False)
    }
    if name == "skip":
        parameters["bias"] = None
    children = {
        key: persistent(child, f"{path}.{key}" if path else key, clamp, layout)
        for key, child in module.named_children()
    }
    if name == "b4" and layout != "skip":
        std = getattr(module, "std_channels", 0)
        empty = {"_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict()}
        state = empty | {"group_size": module.group_size, "num_channels": std}
        children["mbstd"] = Persistent("MinibatchStdLayer", state) if std else None
    state = {
        "training": False,
        "_parameters": OrderedDict(parameters),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(children),
        **_attributes(module, path, clamp, layout),
    }
    return Persistent(CLASSES.get(name, "FullyConnectedLayer"), state)


def nvidia_generator(generator: StyleGAN2Generator, flat: bool = False) -> Persistent:
    """Return a generator as NVIDIA's; ``flat`` as in stylegan3, with other rooms for its arguments."""
    root = persistent(generator, clamp=generator.arguments["conv_clamp"])
    root.class_name = "Generator"
    synthesis = {
        "channel_base": generator.arguments["channel_base"],
        "channel_max": generator.arguments["channel_max"],
        "num_fp16_res": 4 if generator.arguments["conv_clamp"] else 0,
        "conv_clamp": generator.arguments["conv_clamp"],
    }
    root.state |= {
        "z_dim": generator.z_dim,
        "c_dim": generator.label_dim,
        "w_dim": generator.w_dim,
        "img_resolution": generator.size_px,
        "img_channels": generator.channels,
        "num_ws": generator.num_ws,
        "_init_args": (),
        "_init_kwargs": EasyDict(
            z_dim=generator.z_dim,
            mapping_kwargs=EasyDict(num_layers=generator.arguments["mapping_layers"]),
            **(synthesis if flat else {"synthesis_kwargs": EasyDict(synthesis)}),
        ),
    }
    return root


def nvidia_discriminator(network: StyleGAN2Discriminator) -> Persistent:
    root = persistent(
        network, clamp=network.arguments["conv_clamp"], layout=str(network.arguments["architecture"])
    )
    root.class_name = "Discriminator"
    root.state["_init_kwargs"] = EasyDict(channel_base=network.arguments["channel_base"])
    return root


def write_nvidia(
    path: Path,
    generator: StyleGAN2Generator,
    judge: StyleGAN2Discriminator | None = None,
    last: StyleGAN2Generator | None = None,
    protocol: int = 4,
    flat: bool = False,
) -> Path:
    held = {
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="/data/x.zip"),
        "G": nvidia_generator(last or generator, flat),
        "D": nvidia_discriminator(judge or discriminator(generator.size_px, label_dim=generator.label_dim)),
        "G_ema": nvidia_generator(generator, flat),
        "augment_pipe": None,
    }
    return write(path, held, protocol)


# -------------------- NVIDIA, TensorFlow


def _dense(value: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(value.numpy().T)


def _kernel(value: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(value.numpy().transpose(2, 3, 1, 0))


def tf_network(
    name: str, variables: dict[str, Any], settings: dict[str, Any], version: int, **parts: Network
) -> Network:
    return Network(
        version=version,
        name=name,
        static_kwargs=settings,
        components=parts,
        build_module_src=SOURCE,
        build_func_name=name,
        variables=list(variables.items()),
    )


def tf_stylegan2(generator: StyleGAN2Generator, version: int = 4, **settings: Any) -> Network:
    state = {key: value.detach() for key, value in generator.state_dict().items()}
    mapping: dict[str, Any] = {}
    for layer in range(generator.arguments["mapping_layers"]):
        mapping[f"Dense{layer}/weight"] = _dense(state[f"mapping.fc{layer}.weight"])
        mapping[f"Dense{layer}/bias"] = state[f"mapping.fc{layer}.bias"].numpy()
    if generator.label_dim:
        mapping["LabelEmbed/weight"] = _dense(state["mapping.embed.weight"])
        mapping["LabelEmbed/bias"] = state["mapping.embed.bias"].numpy()
    synthesis: dict[str, Any] = {"4x4/Const/const": state["synthesis.b4.const"].numpy()[None]}
    index = 0
    for size in generator.synthesis.sizes:
        for layer in ("conv0", "conv1", "torgb"):
            ours = f"synthesis.b{size}.{layer}"
            if f"{ours}.weight" not in state:
                continue
            named = {"conv0": "Conv0_up", "conv1": "Conv" if size == 4 else "Conv1", "torgb": "ToRGB"}[layer]
            theirs = f"{size}x{size}/{named}"
            kernel = _kernel(state[f"{ours}.weight"])
            synthesis[f"{theirs}/weight"] = kernel[::-1, ::-1].copy() if layer == "conv0" else kernel
            synthesis[f"{theirs}/bias"] = state[f"{ours}.bias"].numpy()
            synthesis[f"{theirs}/mod_weight"] = _dense(state[f"{ours}.affine.weight"])
            synthesis[f"{theirs}/mod_bias"] = state[f"{ours}.affine.bias"].numpy() - np.float32(1)
            if layer != "torgb":
                synthesis[f"{theirs}/noise_strength"] = np.float32(state[f"{ours}.noise_strength"].numpy())
                synthesis[f"noise{index}"] = state[f"{ours}.noise_const"].numpy()[None, None]
                index += 1
    settings = {
        "num_channels": generator.channels,
        "resolution": generator.size_px,
        "label_size": generator.label_dim,
        "fmap_base": generator.arguments["channel_base"] // 2,
        "fmap_max": generator.arguments["channel_max"],
        **settings,
    }
    if generator.arguments["conv_clamp"]:
        settings["conv_clamp"] = int(generator.arguments["conv_clamp"])
    return tf_network(
        "G",
        {"dlatent_avg": state["mapping.w_avg"].numpy()},
        settings,
        version,
        synthesis=tf_network("G_synthesis", synthesis, settings, version),
        mapping=tf_network("G_mapping", mapping, settings, version),
    )


def tf_discriminator(network: StyleGAN2Discriminator, version: int = 4, **settings: Any) -> Network:
    state = {key: value.detach() for key, value in network.state_dict().items()}
    variables: dict[str, Any] = {}
    for key, value in state.items():
        block, layer, part = key.split(".") if key.count(".") == 2 else (*key.split("."), "")
        if block == "mapping":
            name = "LabelEmbed" if layer == "embed" else f"Mapping{layer[2:]}"
            variables[f"{name}/{part}"] = _dense(value) if part == "weight" else value.numpy()
            continue
        size = f"{block[1:]}x{block[1:]}"
        name = {
            "fromrgb": f"{size}/FromRGB",
            "conv0": f"{size}/Conv0",
            "conv1": f"{size}/Conv1_down",
            "skip": f"{size}/Skip",
            "conv": f"{size}/Conv",
            "fc": f"{size}/Dense0",
            "out": "Output",
        }[layer]
        if part == "bias":
            variables[f"{name}/bias"] = value.numpy()
        else:
            variables[f"{name}/weight"] = _dense(value) if value.dim() == 2 else _kernel(value)
    settings = {
        "resolution": network.size_px,
        "fmap_base": network.arguments["channel_base"] // 2,  # type: ignore[operator]
        "architecture": network.arguments["architecture"],
        **settings,
    }
    return tf_network("D", variables, settings, version)


def tf_stylegan1(generator: StyleGAN1Generator, version: int = 3, flipped_from: int = 128) -> Network:
    state = {key: value.detach() for key, value in generator.state_dict().items()}
    mapping: dict[str, Any] = {}
    for layer in range(generator.arguments["mapping_layers"]):
        mapping[f"Dense{layer}/weight"] = _dense(state[f"mapping.fc{layer}.weight"])
        mapping[f"Dense{layer}/bias"] = state[f"mapping.fc{layer}.bias"].numpy()
    if generator.label_dim:
        mapping["LabelConcat/weight"] = _dense(state["mapping.embed.weight"])
    synthesis: dict[str, Any] = {
        "lod": np.float32(0),
        "4x4/Const/const": state["synthesis.b4.const"].numpy()[None],
    }
    sizes = generator.synthesis.sizes
    for level, size in enumerate(sizes):
        for index, layer in enumerate(("conv0", "conv1")):
            ours = f"synthesis.b{size}.{layer}"
            named = ("Const", "Conv") if size == 4 else ("Conv0_up", "Conv1")
            theirs = f"{size}x{size}/{named[index]}"
            if f"{ours}.weight" in state:
                kernel = _kernel(state[f"{ours}.weight"])
                mirrored = layer == "conv0" and size >= flipped_from
                synthesis[f"{theirs}/weight"] = kernel[::-1, ::-1].copy() if mirrored else kernel
            synthesis[f"{theirs}/bias"] = state[f"{ours}.bias"].numpy()
            synthesis[f"{theirs}/Noise/weight"] = state[f"{ours}.noise_weight"].numpy()
            synthesis[f"{theirs}/StyleMod/weight"] = _dense(state[f"{ours}.style.weight"])
            synthesis[f"{theirs}/StyleMod/bias"] = state[f"{ours}.style.bias"].numpy()
            synthesis[f"noise{2 * level + index}"] = state[f"{ours}.noise_const"].numpy()[None, None]
    for lod in range(len(sizes)):
        image = _kernel(state["synthesis.torgb.weight"])
        synthesis[f"ToRGB_lod{lod}/weight"] = image + np.float32(lod)
        synthesis[f"ToRGB_lod{lod}/bias"] = state["synthesis.torgb.bias"].numpy()
    settings = {"num_channels": 3, "resolution": generator.size_px, "label_size": generator.label_dim}
    return tf_network(
        "G",
        {"lod": np.float32(0), "dlatent_avg": state["mapping.w_avg"].numpy()},
        settings,
        version,
        synthesis=tf_network("G_synthesis", synthesis, settings, version),
        mapping=tf_network("G_mapping", mapping, settings, version),
    )


# -------------------- rosinality


class _Held(nn.Module):
    """A module of weights and named parts."""

    def __init__(self, parameters: dict[str, tuple[int, ...]] | None = None, **parts: nn.Module) -> None:
        super().__init__()
        for name, shape in (parameters or {}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        for name, part in parts.items():
            self.add_module(name, part)


class _Kernel(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.register_buffer("kernel", FILTER * gain)


def _linear(into: int, out: int) -> nn.Module:
    return _Held({"weight": (out, into), "bias": (out,)})


def _modulated(into: int, out: int, side: int, width: int, up: bool) -> nn.Module:
    parts = {"blur": _Kernel(4.0)} if up else {}
    return _Held({"weight": (1, out, into, side, side)}, **parts, modulation=_linear(width, into))


def _styled(into: int, out: int, width: int, up: bool = False) -> nn.Module:
    return _Held(
        None,
        conv=_modulated(into, out, 3, width, up),
        noise=_Held({"weight": (1,)}),
        activate=_Held({"bias": (out,)}),
    )


def _to_rgb(into: int, width: int, up: bool = True) -> nn.Module:
    parts = {"upsample": _Kernel(4.0)} if up else {}
    return _Held({"bias": (1, 3, 1, 1)}, **parts, conv=_modulated(into, 3, 1, width, False))


class RosinalityGenerator(nn.Module):
    """The state of rosinality's generator, with a table of channels that may be narrower than theirs.

    ``maps=False`` is that of its first months, whose noise maps were no buffers.
    """

    def __init__(
        self, size: int, style_dim: int, n_mlp: int, channels: Mapping[int, int], maps: bool = True
    ) -> None:
        super().__init__()
        self.style = nn.Sequential(nn.Identity(), *(_linear(style_dim, style_dim) for _ in range(n_mlp)))
        self.input = _Held({"input": (1, channels[4], 4, 4)})
        self.conv1 = _styled(channels[4], channels[4], style_dim)
        self.to_rgb1 = _to_rgb(channels[4], style_dim, up=False)
        levels = size.bit_length() - 1
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for index in range((levels - 2) * 2 + 1 if maps else 0):
            side = 2 ** ((index + 5) // 2)
            self.noises.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))
        for level in range(3, levels + 1):
            into, out = channels[2 ** (level - 1)], channels[2**level]
            self.convs.append(_styled(into, out, style_dim, up=True))
            self.convs.append(_styled(out, out, style_dim))
            self.to_rgbs.append(_to_rgb(out, style_dim))


class RosinalityDiscriminator(nn.Module):
    """The state of rosinality's discriminator."""

    def __init__(self, size: int, channels: Mapping[int, int]) -> None:
        super().__init__()
        width = channels[size]
        convs: list[nn.Module] = [
            nn.Sequential(_Held({"weight": (width, 3, 1, 1)}), _Held({"bias": (width,)}))
        ]
        for level in range(size.bit_length() - 1, 2, -1):
            into, out = channels[2**level], channels[2 ** (level - 1)]
            convs.append(
                _Held(
                    None,
                    conv1=nn.Sequential(_Held({"weight": (into, into, 3, 3)}), _Held({"bias": (into,)})),
                    conv2=nn.Sequential(
                        _Kernel(1.0), _Held({"weight": (out, into, 3, 3)}), _Held({"bias": (out,)})
                    ),
                    skip=nn.Sequential(_Kernel(1.0), _Held({"weight": (out, into, 1, 1)})),
                )
            )
        self.convs = nn.Sequential(*convs)
        last = channels[4]
        self.final_conv = nn.Sequential(_Held({"weight": (last, last + 1, 3, 3)}), _Held({"bias": (last,)}))
        self.final_linear = nn.Sequential(_linear(last * 16, last), _linear(last, 1))


def widths(size_px: int, base: int, most: int) -> dict[int, int]:
    return {4 << level: min(base // (4 << level), most) for level in range(size_px.bit_length() - 2)}


# -------------------- lernapparat


def lernapparat_state(generator: StyleGAN1Generator) -> dict[str, Tensor]:
    state = {key: value.detach() for key, value in generator.state_dict().items()}
    made: dict[str, Tensor] = OrderedDict()
    for layer in range(generator.arguments["mapping_layers"]):
        for part in ("weight", "bias"):
            made[f"g_mapping.dense{layer}.{part}"] = state[f"mapping.fc{layer}.{part}"]
    made["g_synthesis.torgb.weight"] = state["synthesis.torgb.weight"]
    made["g_synthesis.torgb.bias"] = state["synthesis.torgb.bias"]
    for size in generator.synthesis.sizes:
        block = f"g_synthesis.blocks.{size}x{size}"
        if size == 4:
            made[f"{block}.const"] = state["synthesis.b4.const"][None]
        for index, layer in enumerate(("", "conv") if size == 4 else ("conv0_up", "conv1")):
            ours, prefix = f"synthesis.b{size}.conv{index}", f"{block}.{layer}." if layer else f"{block}."
            if layer:
                kernel = state[f"{ours}.weight"]
                mirrored = layer == "conv0_up" and size >= 128
                made[f"{prefix}weight"] = kernel.flip(2, 3) if mirrored else kernel
                if layer == "conv0_up":
                    made[f"{prefix}intermediate.kernel"] = torch.ones(1, 1, 3, 3)
            made[f"{prefix}bias"] = state[f"{ours}.bias"]
            made[f"{block}.epi{index + 1}.top_epi.noise.weight"] = state[f"{ours}.noise_weight"]
            made[f"{block}.epi{index + 1}.style_mod.lin.weight"] = state[f"{ours}.style.weight"]
            made[f"{block}.epi{index + 1}.style_mod.lin.bias"] = state[f"{ours}.style.bias"]
    return made
