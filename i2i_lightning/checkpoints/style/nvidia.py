"""Network pickles of NVIDIA's stylegan2-ada-pytorch, and of StyleGAN2 in stylegan3: ``G``, ``D``, ``G_ema``.

Each module is saved with the source code of its class, which is not looked at, and with its attributes, which
say all that the shapes of the weights do not. The names of the weights are those of this project.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from i2i_lightning.checkpoints.style import shapes
from i2i_lightning.checkpoints.style.contents import (
    StyleNetwork,
    Weights,
    check_filter,
    number,
    setting,
    text_keys,
)
from i2i_lightning.checkpoints.style.values import Instance, Missing, Refused, shown

WORDS = "a network pickle of NVIDIA's, for PyTorch"
MAX_MODULES = 2000
MAX_NESTING = 8
WHOLE_BATCH = 1 << 16
"""Group of the minibatch standard deviation for what NVIDIA calls None."""
LABEL_RATE = 0.01
"""Rate multiplier of the label's mapping in this project's discriminator."""


def recognise(held: Any) -> bool:
    """Return whether this is such a pickle: a dict with networks, or one network by itself."""
    if isinstance(held, Instance):
        return held.kind == "persistent"
    return type(held) is dict and any(
        isinstance(held.get(key), Instance) and held[key].kind == "persistent" for key in ("G_ema", "G", "D")
    )


def generator(held: Any, averaged: bool = True) -> StyleNetwork:
    """Return the generator, by default with the average of its weights.

    Raises:
        Refused: If there is none, or not one that this project has.
    """
    if isinstance(held, Instance):
        return _generator(held, averaged=False)
    keys = ("G_ema", "G") if averaged else ("G", "G_ema")
    key = next((key for key in keys if isinstance(held.get(key), Instance)), None)
    if key is None:
        raise Refused("it holds no generator (G_ema)")
    return _generator(held[key], averaged=key == "G_ema")


def discriminator(held: Any) -> StyleNetwork:
    """Return the discriminator.

    Raises:
        Missing: If there is none.
        Refused: If it is not one that this project has.
    """
    network = held if isinstance(held, Instance) else held.get("D")
    if not isinstance(network, Instance):
        raise Missing("it holds no discriminator (D)")
    return _discriminator(network)


class _Modules:
    """The modules of one network, by their paths, and all their weights.

    Args:
        root: The network.
    """

    def __init__(self, root: Instance) -> None:
        self.modules: dict[str, dict[str, Any]] = {}
        self.classes: dict[str, str] = {}
        arrays: dict[str, Any] = {}
        self._collect(root, "", arrays)
        self.weights = Weights(arrays)
        for name in [name for name in arrays if name.rpartition(".")[2] == "resample_filter"]:
            check_filter(self.weights.take(name, 2))
            del arrays[name]

    def _collect(self, module: object, path: str, arrays: dict[str, Any]) -> None:
        if not isinstance(module, Instance) or module.kind != "persistent":
            raise Refused(f"its module {shown(path) or 'G'} is {shown(module)}")
        if len(self.modules) >= MAX_MODULES or path.count(".") > MAX_NESTING:
            raise Refused(f"it has more than {MAX_MODULES} modules, or more than {MAX_NESTING} in each other")
        state = text_keys(module.state, f"the state of {shown(path) or 'the network'}")
        self.modules[path.rstrip(".")] = state
        self.classes[path.rstrip(".")] = module.class_name
        for room in ("_parameters", "_buffers"):
            for name, value in text_keys(state.get(room), f"{path}{room}").items():
                if value is not None:
                    arrays[f"{path}{name}"] = value
        for name, child in text_keys(state.get("_modules"), f"{path}_modules").items():
            if child is not None:
                self._collect(child, f"{path}{name}.", arrays)

    def attribute(self, path: str, name: str) -> Any:
        """Return an attribute of a module."""
        if path not in self.modules:
            raise Refused(f"it lacks {path}")
        if name not in self.modules[path]:
            raise Refused(f"it lacks {path}.{name}")
        return self.modules[path][name]

    def clamp(self, path: str) -> float | None:
        """Return the largest magnitude of a layer's activations."""
        value = self.attribute(path, "conv_clamp")
        return None if value is None else number(value, "conv_clamp")

    def arguments(self, *rooms: str) -> dict[str, Any]:
        """Return what the network was constructed with, with the entries of ``rooms`` beside the others."""
        given = self.modules[""].get("_init_kwargs")
        if type(given) is not dict:
            return {}
        for room in rooms:
            if type(given.get(room)) is dict:
                given = given | given[room]
        return given

    def state(self) -> dict[str, Any]:
        """Return all weights."""
        return {name: self.weights.take(name) for name in self.weights.arrays}


def _generator(root: Instance, averaged: bool) -> StyleNetwork:
    network = _Modules(root)
    if "synthesis.input" in network.modules:
        raise Refused("it is a StyleGAN3 generator, whose synthesis is not known here; StyleGAN1 and 2 are")
    if "synthesis.b4" not in network.modules or "mapping" not in network.modules:
        raise Refused(f"its class {shown(root.class_name)} is no generator of StyleGAN2")
    state = network.state()
    sizes = shapes.sizes_of(state, r"synthesis\.b(\d{1,5})\.conv1\.weight")
    for size in sizes:
        block = f"synthesis.b{size}"
        setting(network.attribute(block, "architecture"), "architecture", ("skip",))
        for layer in ("conv1",) if size == sizes[0] else ("conv0", "conv1"):
            setting(network.attribute(f"{block}.{layer}", "activation"), "activation", ("lrelu",))
            setting(network.attribute(f"{block}.{layer}", "use_noise"), "use_noise", (True,))
    clamps = {
        network.clamp(path) for path in network.modules if path.endswith((".conv0", ".conv1", ".torgb"))
    }
    if len(clamps) != 1:
        raise Refused("its layers clamp activations differently")
    first = "mapping.fc0"
    setting(network.attribute(first, "activation"), "mapping's activation", ("lrelu",))
    config = shapes.stylegan2(
        state,
        channel_base=network.arguments("synthesis_kwargs").get("channel_base"),
        lr_multiplier=number(network.attribute(first, "bias_gain"), "mapping's lr_multiplier"),
        conv_clamp=clamps.pop(),
    )
    return StyleNetwork(config, state, averaged)


def _discriminator(root: Instance) -> StyleNetwork:
    network = _Modules(root)
    if "synthesis" in network.modules:
        raise Missing("it holds a generator, and no discriminator")
    if "b4" not in network.modules or "b4.out" not in network.modules:
        raise Refused(f"its class {shown(root.class_name)} is no discriminator of StyleGAN2")
    setting(network.attribute("b4", "architecture"), "discriminator's architecture", ("resnet", "orig"))
    setting(network.attribute("b4.fc", "activation"), "activation", ("lrelu",))
    state = network.state()
    group: Any = 4
    if "b4.mbstd" in network.modules:
        group = network.attribute("b4.mbstd", "group_size")
        group = WHOLE_BATCH if group is None else int(number(group, "mbstd_group_size"))
    config = shapes.discriminator(
        state,
        channel_base=network.arguments().get("channel_base"),
        conv_clamp=network.clamp("b4.conv"),
        mbstd_group_size=group,
    )
    # The rate is no setting of this project's: what the layers compute with is weight times rate.
    for layer in range(config.get("mapping_layers", 0)):
        ratio = number(network.attribute(f"mapping.fc{layer}", "bias_gain"), "lr_multiplier") / LABEL_RATE
        for part in ("weight", "bias"):
            name = f"mapping.fc{layer}.{part}"
            state[name] = state[name] * np.float32(ratio) if ratio != 1 else state[name]
    return StyleNetwork(config, state)
