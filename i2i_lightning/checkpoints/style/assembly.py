"""From a network of a file to a network of this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from i2i_lightning.checkpoints.io import first_line
from i2i_lightning.checkpoints.style.contents import Numbers, StyleNetwork
from i2i_lightning.checkpoints.style.mean import mean_latent
from i2i_lightning.checkpoints.style.shapes import MAX_LAYERS
from i2i_lightning.checkpoints.style.values import Refused, shown
from i2i_lightning.networks.style import StyleGenerator, build
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.types import UserError

MAX_SETTING = 1 << 24
"""Largest whole number in a config."""
MAX_SIZE_PX = 8192
MAX_LIST = 64


def generator_of(network: StyleNetwork) -> StyleGenerator:
    """Return the generator that ``network`` describes: in evaluation mode, float32, on the CPU.

    Raises:
        Refused: If its weights are not those of its config.
    """
    _check_config(network.config)
    try:
        with torch.device("meta"), _Outline():  # no random weights, only to lose them
            generator = build(network.config)
    except (UserError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise Refused(f"its config is impossible: {first_line(error)}") from None
    state = dict(network.state)
    lacks_mean = "mapping.w_avg" not in state
    if lacks_mean and generator.label_dim:
        raise Refused("it lacks the mean latent, and it is conditional")
    if lacks_mean:
        state["mapping.w_avg"] = np.zeros(generator.w_dim, np.float32)
    _fill(generator, state)
    if lacks_mean:
        generator.mapping.w_avg.copy_(mean_latent(generator.mapping, generator.z_dim))
    return generator.eval()


def discriminator_of(network: StyleNetwork) -> StyleGAN2Discriminator:
    """Return the discriminator that ``network`` describes: in evaluation mode, float32, on the CPU.

    Raises:
        Refused: If its weights are not those of its config.
    """
    _check_config(network.config)
    try:
        with torch.device("meta"), _Outline():
            discriminator = StyleGAN2Discriminator(**network.config)
    except (UserError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise Refused(f"its config is impossible: {first_line(error)}") from None
    _fill(discriminator, network.state)
    return discriminator.eval()


class _Outline(TorchFunctionMode):
    """Make tensors without numbers: of a shape alone, torch's own way there imports a second of itself."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return an empty tensor for one of initial numbers, and the tensor itself where it is scaled."""
        if func in (torch.randn, torch.zeros, torch.ones, torch.full):
            sides = args[0] if isinstance(args[0], (list, tuple, torch.Size)) else args
            return torch.empty(tuple(sides), device="meta")
        if func in (Tensor.div, Tensor.mul, Tensor.__truediv__, Tensor.__mul__):
            return args[0]
        return func(*args, **(kwargs or {}))


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ``Refused`` for values that would take for ever to build, or that no config has."""
    limits = {"size_px": MAX_SIZE_PX, "mapping_layers": MAX_LAYERS, "mbstd_channels": MAX_SIZE_PX}
    for key, value in config.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) > MAX_LIST:
            raise Refused(f"its config has {len(values)} numbers for {shown(key)}")
        for part in values:
            if not isinstance(part, (str, bool, int, float, type(None))):
                raise Refused(f"its config has {shown(part)} for {shown(key)}")
            if isinstance(part, (int, float)) and not 0 <= part <= limits.get(key, MAX_SETTING):
                raise Refused(f"its config has {shown(key)}={shown(part)}")


def _fill(network: nn.Module, state: Mapping[str, Numbers | Tensor]) -> None:
    """Give a network without memory its weights, in float32."""
    wanted = network.state_dict()
    wrong = [f"it lacks {key}" for key in wanted if key not in state]
    wrong += [f"it has {shown(key)}, which is no part of the network" for key in state if key not in wanted]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, the network wants {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and tuple(state[key].shape) != tuple(value.shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise Refused(f"{wrong[0]}{more}")
    network.load_state_dict({key: _tensor(state[key]) for key in wanted}, assign=True)
    for module in network.modules():  # buffers that are not part of a state
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros(buffer.shape), persistent=False)


def _tensor(values: Numbers | Tensor) -> Tensor:
    """Return a copy in float32."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.float32, copy=True).contiguous()
    return torch.from_numpy(np.array(values, np.float32, order="C"))
