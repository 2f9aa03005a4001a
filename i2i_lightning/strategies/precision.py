"""The number formats a run computes in, as plugins of Lightning's trainer.

Mixed formats learn their device when the run has one, so that ``trainer.accelerator=auto`` and CPUs take
them like any other. Weights, optimiser states and averages are float32 in all of them but ``fp64``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from torch import nn
from torch.optim import Optimizer

from i2i_lightning.types import UserError


def fp32() -> Precision:
    """Return 32-bit floats throughout: no TensorFloat-32, which cuDNN takes for convolutions by default."""
    return Float32(tensor_float=False)


def tf32() -> Precision:
    """Return 32-bit floats whose products NVIDIA GPUs from Ampere on round to 10 bits of mantissa first."""
    return Float32(tensor_float=True)


def bf16() -> Precision:
    """Return mixed precision in bfloat16: the range of float32 with 7 bits of mantissa; nothing to scale."""
    return Autocast("bf16-mixed", "cpu")


def fp16(init_scale: float = 65536.0, growth_interval: int = 2000) -> Precision:
    """Return mixed precision in float16: 10 bits of mantissa and a small range, hence scaled losses.

    Args:
        init_scale: What losses are multiplied by at first; halved whenever a gradient overflows.
        growth_interval: Steps without an overflow after which the scale is doubled.

    Raises:
        UserError: If either is not positive.
    """
    return Float16(init_scale, growth_interval)


def fp64() -> Precision:
    """Return 64-bit floats throughout, data included, for comparisons; GPUs are slow at it."""
    return DoublePrecision()


class Float32(Precision):
    """32-bit floats, with or without TensorFloat-32 for the length of the run.

    Args:
        tensor_float: Whether matrix products and convolutions of CUDA devices may use it.
    """

    precision: Literal["32-true"] = "32-true"

    def __init__(self, tensor_float: bool) -> None:
        super().__init__()
        self.tensor_float = tensor_float
        self._before: tuple[bool, bool] | None = None

    def connect(self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]) -> Any:
        """Switch TensorFloat-32 on or off in the process that trains."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        self._before = self._before or (matmul.allow_tf32, cudnn.allow_tf32)
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tensor_float
        return super().connect(model, optimizers, lr_schedulers)

    def teardown(self) -> None:
        """Leave both switches as they were found."""
        if self._before is not None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before
            self._before = None


class Autocast(MixedPrecision):
    """Mixed precision on whatever device the model was moved to."""

    def connect(self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]) -> Any:
        """Take the device of the model, which lies on it by now."""
        self.device = next(model.parameters()).device.type
        return super().connect(model, optimizers, lr_schedulers)


class Float16(Autocast):
    """Mixed precision in float16 for several optimisers: one loss scale, constant within a batch.

    Lightning's own plugin changes the scale after every optimiser's step, while the next player's gradients
    may be waiting at the old one, and clips the scaled gradients of a fused optimiser. Here every optimiser's
    gradients are unscaled before the hooks that clip them, and the scale changes once, after the batch in
    which players stepped.

    A player whose gradients overflowed does not step; the others do, and so does the same player in a further
    phase of the batch, such as a lazy regulariser's. Gradients are reduced over processes before they are
    unscaled, so that all of them leave the same step out.

    Args:
        init_scale: The first scale.
        growth_interval: Steps without an overflow after which it is doubled.

    Attributes:
        skipped_steps: Steps of players left out since the beginning of the run, resumes included.
    """

    scaler: torch.amp.GradScaler

    def __init__(self, init_scale: float, growth_interval: int) -> None:
        if init_scale <= 0 or growth_interval < 1:
            raise UserError(
                f"precision.init_scale={init_scale}, precision.growth_interval={growth_interval}: "
                "give a positive scale and at least 1 step"
            )
        self.init_scale = init_scale
        self.growth_interval = growth_interval
        self.skipped_steps = 0
        self._steps_now = False
        super().__init__("16-mixed", "cpu", self._scaler("cpu"))

    def _scaler(self, device: str) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device, init_scale=self.init_scale, growth_interval=self.growth_interval)

    def connect(self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]) -> Any:
        """Take the device of the model, and a scaler for it; a checkpoint's state is loaded after this."""
        before = self.device
        connected = super().connect(model, optimizers, lr_schedulers)
        if self.device != before:
            self.scaler = self._scaler(self.device)
        return connected

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> bool:
        """Unscale the gradients, let hooks see and clip them, and step unless they overflowed.

        Returns:
            Whether the step was taken.
        """
        closure()
        # Torch's scaler knows one step of an optimiser in a batch; of a second one it has to be told anew.
        earlier = self.scaler._per_optimizer_states.pop(id(optimizer), {}).get("found_inf_per_device", {})
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        # The scaler knows from here on; it is asked once more in its step, where a fused optimiser looks for
        # itself.
        found = self.scaler._found_inf_per_device(optimizer)
        overflowed = any(bool(value) for value in found.values())
        self.scaler.step(optimizer, **kwargs)
        for device, value in earlier.items():  # the scale is halved after an overflow in any of the steps
            found[device] = torch.maximum(found[device], value)
        self.skipped_steps += overflowed
        self._steps_now = True
        return not overflowed

    @contextmanager
    def train_step_context(self) -> Iterator[None]:
        """Run a batch under autocast, and then change the scale if players stepped in it."""
        with super().train_step_context():
            yield
        if self._steps_now:
            self._steps_now = False
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, the steps since its last change, and the steps left out."""
        return self.scaler.state_dict() | {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.skipped_steps = int(state_dict["skipped_steps"])
        self.scaler.load_state_dict(state_dict)
