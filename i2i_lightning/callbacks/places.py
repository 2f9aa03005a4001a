"""Which image of the data set is which, whatever process it came to: what is measured counts once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from i2i_lightning.callbacks.readings import batch_size
from i2i_lightning.data.sampler import EpochSampler


class Places:
    """Follow one pass over a validation or test set and tell the place of every item in it.

    Where the items do not divide, a sampler gives some to two processes; the repeated ones have the place -1.
    """

    def __init__(self) -> None:
        self._dealt: Tensor | None = None
        self._seen = 0
        self._processes, self._rank = 1, 0

    def begin(self, trainer: Trainer, stage: str) -> None:
        """Start at the first batch.

        Args:
            trainer: The trainer.
            stage: ``val`` or ``test``.
        """
        loaders: Any = getattr(trainer, f"{stage}_dataloaders")
        loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
        sampler = getattr(loader, "sampler", None)
        self._dealt = torch.from_numpy(sampler.places()) if isinstance(sampler, EpochSampler) else None
        self._seen = 0
        self._processes, self._rank = trainer.world_size, trainer.global_rank

    def advance(self, batch: Any) -> Tensor:
        """Return the places of the next batch's items, long ``(N,)`` on the CPU.

        Items of a loader with another sampler all count, in turn by process.
        """
        start, end = self._seen, self._seen + batch_size(batch)
        self._seen = end
        if self._dealt is not None:
            return self._dealt[start:end]
        return torch.arange(start, end) * self._processes + self._rank


def first_places(places: Tensor, batch: Any, side: str) -> Tensor:
    """Return the places of those images of one side of a batch that a method returns from its validation.

    Data without pairs mark in ``first_a`` and ``first_b`` which pictures come for the first time, in an order
    that is that of their set.

    Args:
        places: Of the batch's items, long ``(N,)``.
        batch: The batch.
        side: ``a`` or ``b``.
    """
    if isinstance(batch, Mapping) and f"first_{side}" in batch:
        mask: Tensor = batch[f"first_{side}"]
        return places[mask.cpu()]
    return places
