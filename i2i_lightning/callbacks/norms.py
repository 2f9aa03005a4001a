"""How large the gradients and the parameters of each player are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from i2i_lightning.callbacks.readings import log_every, log_step, logs_now


class Norms(Callback):
    """Log ``norms/<player>/gradient`` and ``norms/<player>/parameters`` where the loggers log anyway.

    Both are Euclidean norms over all of a player's parameters. That of the gradient is of the last step up to
    then, as it comes out of the backward pass: unscaled, averaged over processes, not yet clipped. Everything
    is brought to the host in one transfer.

    Args:
        gradients: Whether to log those of the gradients.
        parameters: Whether to log those of the parameters.
    """

    def __init__(self, gradients: bool = False, parameters: bool = False) -> None:
        self.gradients = gradients
        self.parameters = parameters
        self._steps: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradient's norm, if this may be the last step before the loggers log; it stays there."""
        # The loggers may come between two steps of gradients that are accumulated.
        every, ahead = log_every(trainer), int(getattr(pl_module, "accumulate_batches", 1))
        until = (log_step(trainer) + 1) % every + ahead if every else 0
        if not self.gradients or not trainer.is_global_zero or until < every:
            return
        player = list(_players(pl_module))[trainer.optimizers.index(optimizer)]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._steps[f"norms/{player}/gradient"] = norm(p.grad for p in parameters if p.grad is not None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Bring the norms to the host and log them."""
        if not logs_now(trainer) or not trainer.is_global_zero:
            return
        found, self._steps = self._steps, {}
        if self.parameters:
            for player, networks in _players(pl_module).items():
                weights = (p.detach() for network in networks for p in network.parameters())
                found[f"norms/{player}/parameters"] = norm(weights)
        if not found:
            return
        values = torch.stack(list(found.values())).tolist()
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(found, values, strict=True)), step=log_step(trainer))


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all values of ``tensors`` together, 0-d float32 on their device."""
    values = [tensor.detach().float() for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values))) if values else torch.zeros(())


def _players(pl_module: LightningModule) -> dict[str, list[nn.Module]]:
    players: dict[str, list[nn.Module]] = getattr(pl_module, "players", {})
    return players
