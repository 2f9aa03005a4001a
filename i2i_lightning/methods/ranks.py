"""What each process of a run has of its own, brought together for a checkpoint."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed
from lightning import Trainer

T = TypeVar("T")


def gather(trainer: Trainer, mine: T) -> list[T]:
    """Return what each process calls this with, by rank; to be called on all of them."""
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
