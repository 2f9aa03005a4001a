"""Reading a step's terms without making the host wait for the device.

A method leaves the terms of its last batch in ``step_terms``: detached 0-d tensors on the device. Whoever
watches a run takes them from here, where they are stacked once per batch for everyone, added up on the
device, and brought to the host rarely or by a copy that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

FOLD_EVERY = 64
"""Batches whose terms wait as separate tensors before they are added up: two small kernels in so many
batches."""


class Terms(NamedTuple):
    """The terms of one batch: ``values[i]`` is the term called ``names[i]``; float (T,) on the device."""

    names: tuple[str, ...]
    values: Tensor


_last_terms: WeakKeyDictionary[LightningModule, tuple[Mapping[str, Tensor], Terms]] = WeakKeyDictionary()


def batch_terms(pl_module: LightningModule) -> Terms | None:
    """Return the terms of the batch just trained, stacked; None if the module left none.

    The module is expected to leave a new ``step_terms`` dictionary in every batch.
    """
    step_terms: Mapping[str, Tensor] = getattr(pl_module, "step_terms", {})
    if not step_terms:
        return None
    known = _last_terms.get(pl_module)
    if known is not None and known[0] is step_terms and len(known[1].names) == len(step_terms):
        return known[1]
    terms = Terms(tuple(step_terms), torch.stack([value.detach().float() for value in step_terms.values()]))
    _last_terms[pl_module] = (step_terms, terms)
    return terms


def batch_size(batch: Any) -> int:
    """Return the number of images in ``batch``, as the first tensor found in it tells; 0 without one."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    values = (
        batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else []
    )
    for value in values:
        if size := batch_size(value):
            return size
    return 0


def batches_trained(trainer: Trainer) -> int:
    """Return the number of batches trained since the beginning of the run, however many optimisers step."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


def log_step(trainer: Trainer) -> int:
    """Return the step under which loggers file the batch just trained: its number, counted from 0."""
    seen = getattr(trainer.lightning_module, "batches_seen", None)
    return int(seen) - 1 if seen is not None else int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def logs_now(trainer: Trainer) -> bool:
    """Say whether the loggers take the terms of the batch just trained."""
    every = log_every(trainer)
    return every > 0 and (log_step(trainer) + 1) % every == 0


def log_every(trainer: Trainer) -> int:
    """Return after how many batches the loggers take the terms; 0 for never."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


class TermSums:
    """Sums of step terms over many batches, kept on the device.

    Batches may have different terms (one that is computed every fourth batch, say): a mean is over the
    batches that had the term.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._names: tuple[str, ...] = ()
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    @property
    def count(self) -> int:
        """Batches added since the last ``clear``."""
        return sum(self._counts.values()) + len(self._waiting)

    def add(self, terms: Terms) -> None:
        """Add the terms of one batch; costs one list entry in most batches."""
        if terms.names != self._names:
            self._fold()
            self._names = terms.names
        self._waiting.append(terms.values)
        if len(self._waiting) >= FOLD_EVERY:
            self._fold()

    def _fold(self) -> None:
        if not self._waiting:
            return
        total = torch.stack(self._waiting).sum(0)
        names = self._names
        self._sums[names] = self._sums[names] + total if names in self._sums else total
        self._counts[names] = self._counts.get(names, 0) + len(self._waiting)
        self._waiting = []

    def clear(self) -> None:
        """Forget every batch."""
        self.__init__()  # type: ignore[misc]

    def means(self) -> Terms | None:
        """Return the mean of every term, still on the device; None if nothing was added."""
        self._fold()
        if not self._sums:
            return None
        if len(self._sums) == 1:
            ((names, total),) = self._sums.items()
            return Terms(names, total / self._counts[names])
        all_names = tuple(dict.fromkeys(name for names in self._sums for name in names))
        means = []
        for name in all_names:
            groups = [names for names in self._sums if name in names]
            total = torch.stack([self._sums[names][names.index(name)] for names in groups]).sum()
            means.append(total / sum(self._counts[names] for names in groups))
        return Terms(all_names, torch.stack(means))


class Readout:
    """Bring a few numbers from the device to the host without making the host wait.

    ``offer`` starts a copy and returns at once, ``latest`` returns the newest copy that has arrived; on a GPU
    that is usually the one before. On the CPU there is nothing to wait for.
    """

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        self._coming: tuple[tuple[str, ...], Tensor, Any] | None = None

    def offer(self, terms: Terms) -> None:
        """Start copying ``terms``, unless an earlier copy is still on its way."""
        if not terms.values.is_cuda:
            self._latest = dict(zip(terms.names, terms.values.tolist(), strict=True))
            return
        self._arrive()
        if self._coming is not None:
            return
        host = torch.empty(terms.values.shape, dtype=terms.values.dtype, pin_memory=True)
        host.copy_(terms.values, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._coming = (terms.names, host, event)

    def _arrive(self) -> None:
        if self._coming is not None and self._coming[2].query():
            names, host, _ = self._coming
            self._latest = dict(zip(names, host.tolist(), strict=True))
            self._coming = None

    def latest(self) -> dict[str, float]:
        """Return the newest values that have arrived; empty before the first."""
        self._arrive()
        return self._latest
