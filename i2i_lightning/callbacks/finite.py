"""Stop at a loss that is not finite, name its batch, and keep such a state out of every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer

from i2i_lightning.callbacks.readings import Terms, batch_terms, batches_trained
from i2i_lightning.types import UserError


class NonFiniteLossError(UserError):
    """A loss term, or a weight, is NaN or infinite. The message names the batch and the terms."""


class _Trained(NamedTuple):
    epoch: int
    batch_idx: int
    names: list[str]
    terms: Terms


class NonFiniteGuard(Callback):
    """Stop training at the first batch with a term in ``step_terms`` that is NaN or infinite.

    The terms of the last batches stay on the device and are looked at together, so that a GPU is not made to
    wait for the host in every step. ``Checkpoints`` calls ``check_now`` before it writes, and Lightning asks
    this callback once more while it gathers a checkpoint, so the last good checkpoint survives whatever the
    order of the callbacks.

    Args:
        check_every: Batches between two looks; None for every batch on a CPU, and every 50 on a GPU or when
            several processes must agree.
    """

    def __init__(self, check_every: int | None = None) -> None:
        if check_every is not None and check_every < 1:
            raise UserError(
                f"callbacks.finite.check_every={check_every}: give at least 1, or null to choose by device"
            )
        self.check_every = check_every
        self._batch: tuple[int, int, list[str]] | None = None
        self._collected = 0
        self._weights_checked_after = -1
        self._pending: list[_Trained] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with nothing pending."""
        self._batch, self._pending = None, []
        self._collected = batches_trained(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which batch is about to be trained: any later hook may ask for it."""
        names = batch.get("name", []) if isinstance(batch, Mapping) else []
        names = [names] if isinstance(names, str) else [str(name) for name in names]
        self._batch = (trainer.current_epoch, batch_idx, names)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's terms, and look at them when it is time."""
        self._collect(trainer)
        every = self.check_every
        if every is None:
            every = 1 if pl_module.device.type == "cpu" and trainer.world_size == 1 else 50
        if batches_trained(trainer) % every == 0:
            self._check_terms(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is left of the epoch."""
        self._check_terms(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to let a poisoned state into any checkpoint, whoever writes it."""
        if trainer.state.fn == "fit":
            self.check_now(trainer)

    def check_now(self, trainer: Trainer) -> None:
        """Look at every batch so far and at every weight; call it on all processes before a checkpoint.

        Raises:
            NonFiniteLossError: If a loss term of a batch, or a parameter, buffer or average, is NaN or
            infinite.
        """
        self._check_terms(trainer)
        if self._weights_checked_after == batches_trained(trainer):
            return
        self._weights_checked_after = batches_trained(trainer)
        bad = _first_bad_tensor(trainer.lightning_module)
        if self._agree(trainer, bad is not None):
            raise NonFiniteLossError(
                f"the weights are not finite in epoch {trainer.current_epoch + 1} "
                f"({batches_trained(trainer)} batches into the run), although every loss was: "
                f"{bad or 'on another process'}\n{_ADVICE}"
            )

    def _collect(self, trainer: Trainer) -> None:
        # The terms belong to the noted batch once its step is over, whichever hook asks first.
        trained = batches_trained(trainer)
        if self._batch is None or trained <= self._collected:
            return
        self._collected = trained
        terms = batch_terms(trainer.lightning_module)
        if terms is not None:
            self._pending.append(_Trained(*self._batch, terms))

    def _check_terms(self, trainer: Trainer) -> None:
        self._collect(trainer)
        pending, self._pending = self._pending, []
        # One reduction and one transfer for all pending batches; each is opened only if that one says so.
        bad = bool(pending) and not bool(
            torch.isfinite(torch.cat([batch.terms.values for batch in pending])).all()
        )
        if not self._agree(trainer, bad):
            return
        for batch in pending:
            values = dict(zip(batch.terms.names, batch.terms.values.tolist(), strict=True))
            wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
            if wrong:
                shown = ", ".join(batch.names[:4]) + (
                    f" and {len(batch.names) - 4} more" if len(batch.names) > 4 else ""
                )
                raise NonFiniteLossError(
                    f"the loss is not finite in epoch {batch.epoch + 1}, batch {batch.batch_idx + 1}: "
                    f"{', '.join(wrong[:4])}\n"
                    f"images of this batch: {shown or 'it has no names'}\n{_ADVICE}"
                )
        raise NonFiniteLossError(f"the loss is not finite on another process of this run\n{_ADVICE}")

    @staticmethod
    def _agree(trainer: Trainer, bad: bool) -> bool:
        # Every process must stop together, or the others wait for it in their next collective.
        return (
            bool(trainer.strategy.reduce_boolean_decision(bad, all=False)) if trainer.world_size > 1 else bad
        )


_ADVICE = (
    "the last good checkpoint is kept; look at these images, or try a lower optimizer.lr, method.clip_norm=1 "
    "or precision=fp32"
)


@torch.no_grad()
def _first_bad_tensor(module: torch.nn.Module) -> str | None:
    """Return the name of the first floating-point parameter or buffer that is not finite; None if all are."""
    named = [
        (name, tensor)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if tensor.is_floating_point() and tensor.numel()
    ]
    if not named:
        return None
    # The largest magnitude is finite only if every value is; one number per tensor, one transfer for all.
    sizes = torch.stack([tensor.abs().amax().float() for _, tensor in named])
    if bool(torch.isfinite(sizes).all()):
        return None
    return next(
        name for (name, _), size in zip(named, sizes.tolist(), strict=True) if not math.isfinite(size)
    )
