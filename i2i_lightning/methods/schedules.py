"""Learning-rate schedules, stepped once at the end of every epoch.

Each schedule is a small frozen object that turns an optimiser into a ``torch`` scheduler. Epochs count from
0, and no schedule spends an epoch at rate 0: the reference implementation did so between 2020 and 2025, by
stepping its linear decay before the epoch instead of after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from i2i_lightning.types import UserError

Scheduler = LRScheduler | ReduceLROnPlateau


class Schedule(Protocol):
    """Anything that builds a scheduler for an optimiser."""

    def __call__(self, optimizer: Optimizer) -> Scheduler:
        """Return the scheduler that drives ``optimizer``."""
        ...


@dataclass(frozen=True)
class Constant:
    """Keep the learning rate as it is."""

    def __call__(self, optimizer: Optimizer) -> LambdaLR:
        """Return a scheduler of factor 1."""
        return LambdaLR(optimizer, lambda epoch: 1.0)


@dataclass(frozen=True)
class Linear:
    """Hold the rate, then decay it linearly towards 0 (Isola et al. 2017, appendix 6.2: 100 + 100 epochs).

    With ``d = decay_epochs`` and ``h = total_epochs - d``, the factor of epoch ``e`` is
    ``1 - max(0, e + 1 - h) / (d + 1)``: the last epoch trains at ``1 / (d + 1)``, never at 0.

    Args:
        total_epochs: Length of the training in epochs.
        decay_epochs: How many of its last epochs decay.
    """

    total_epochs: int
    decay_epochs: int

    def __post_init__(self) -> None:
        if not 0 <= self.decay_epochs <= self.total_epochs:
            raise UserError(
                f"scheduler.decay_epochs={self.decay_epochs}: "
                f"give 0 to scheduler.total_epochs ({self.total_epochs})"
            )

    def factor(self, epoch: int) -> float:
        """Return the multiple of the base rate at ``epoch``, in (0, 1].

        Past ``total_epochs`` (a run that was extended) the last factor is kept.
        """
        held = self.total_epochs - self.decay_epochs
        return 1.0 - min(max(0, epoch + 1 - held), self.decay_epochs) / (self.decay_epochs + 1)

    def __call__(self, optimizer: Optimizer) -> LambdaLR:
        """Return the linear scheduler of ``optimizer``."""
        # A plain function, not self.factor: a scheduler saves its callables' attributes and would bring back
        # the old length when a run is resumed with more epochs.
        return LambdaLR(optimizer, lambda epoch: self.factor(epoch))


@dataclass(frozen=True)
class Cosine:
    """Follow half a cosine down to, but not onto, 0.

    Loshchilov and Hutter 2017, equation 5, without restarts.
    The factor of epoch ``e`` is ``(1 + cos(pi e / total_epochs)) / 2``.

    Args:
        total_epochs: Length of the training in epochs.
    """

    total_epochs: int

    def __post_init__(self) -> None:
        if self.total_epochs < 1:
            raise UserError(f"scheduler.total_epochs={self.total_epochs}: give at least 1 epoch")

    def factor(self, epoch: int) -> float:
        """Return the multiple of the base rate at ``epoch``, in (0, 1].

        Past ``total_epochs`` (a run that was extended) the last factor is kept.
        """
        return 0.5 * (1.0 + math.cos(math.pi * min(epoch, self.total_epochs - 1) / self.total_epochs))

    def __call__(self, optimizer: Optimizer) -> LambdaLR:
        """Return the cosine scheduler of ``optimizer``."""
        return LambdaLR(optimizer, lambda epoch: self.factor(epoch))


@dataclass(frozen=True)
class Step:
    """Multiply the rate by ``factor`` after every ``every_epochs`` epochs.

    Args:
        every_epochs: Epochs between two drops.
        factor: What each drop multiplies the rate by, in (0, 1].
    """

    every_epochs: int = 50
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.every_epochs < 1 or not 0 < self.factor <= 1:
            raise UserError(
                f"scheduler.every_epochs={self.every_epochs}, scheduler.factor={self.factor}: "
                "give at least 1 epoch and a factor in (0, 1]"
            )

    def __call__(self, optimizer: Optimizer) -> LambdaLR:
        """Return the step scheduler of ``optimizer``."""
        return LambdaLR(optimizer, lambda epoch: self.factor ** (epoch // self.every_epochs))


@dataclass(frozen=True)
class Plateau:
    """Multiply the rate by ``factor`` when a validation metric stops improving.

    The reference implementation steps this schedule on a constant 0; here ``monitor`` names a logged metric.

    Args:
        monitor: Key of the metric, for example ``val/l1``.
        mode: Whether smaller (``min``) or larger (``max``) is better.
        factor: What each drop multiplies the rate by, in (0, 1).
        patience_epochs: Epochs without improvement before a drop.
        threshold: Relative improvement that counts.
    """

    monitor: str = "val/l1"
    mode: Literal["min", "max"] = "min"
    factor: float = 0.2
    patience_epochs: int = 5
    threshold: float = 0.01

    def __call__(self, optimizer: Optimizer) -> ReduceLROnPlateau:
        """Return the plateau scheduler of ``optimizer``."""
        return ReduceLROnPlateau(
            optimizer,
            mode=self.mode,
            factor=self.factor,
            patience=self.patience_epochs,
            threshold=self.threshold,
        )
