"""The order of the data, as a pure function of the seed and the epoch.

A sampler hands out keys ``(epoch, index)`` rather than bare indices. The data set draws its augmentation from
the key, so what an item looks like depends on nothing else: not on the number of workers, not on how they
were started, not on whether they outlive the epoch, and not on any global random state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data.distributed import DistributedSampler

Key = tuple[int, int]
"""``(epoch, index)``: which item, and which of its augmented versions."""

AnyKey = int | Key
"""A key, or a bare index where the epoch does not matter (then it is 0)."""

_ORDER_STREAM, _ITEM_STREAM = 0, 1


def epoch_and_index(key: AnyKey) -> Key:
    """Return ``key`` as ``(epoch, index)``; a bare index belongs to epoch 0."""
    return key if isinstance(key, tuple) else (0, int(key))


def item_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator that an item's augmentation draws from: a pure function of its three arguments.

    Philox is a counter-based generator: the counter *is* the position, so that nothing has to be mixed or
    warmed up, and two different items can never share a stream.

    Args:
        seed: The data seed, at least 0.
        epoch: The epoch, from 0.
        index: The item's index in its data set.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, _ITEM_STREAM, epoch, index]))


class EpochSampler(DistributedSampler[Key]):
    """Yield the keys of one rank's share of one epoch.

    The order is a permutation drawn from ``(seed, epoch)`` alone, or the identity. Every rank draws the same
    permutation and keeps every ``num_replicas``-th entry; where the size does not divide, the order is
    continued from its start so that all ranks see equally many items.

    It derives from torch's class of the same purpose only so that Lightning recognises it as distributed
    already and does not wrap or replace it.

    Args:
        size: The number of items in the data set, at least 1.
        shuffle: Permute the items, anew each epoch.
        seed: The data seed, at least 0.
        num_replicas: The number of ranks.
        rank: This rank, from 0.
    """

    def __init__(self, size: int, shuffle: bool, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self._skip_epoch = -1
        self._skip_items = 0

    def order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return this rank's indices in ``epoch``, in order, int64 of shape ``(len(self),)``."""
        indices = np.arange(self.size, dtype=np.int64)
        if self.shuffle:
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, _ORDER_STREAM, epoch, 0]))
            indices = rng.permutation(indices)
        # Repeat from the start until every rank's share is full.
        return np.resize(indices, self.total_size)[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Key]:
        # Without shuffling there is nothing that an epoch could change: validation sees the same items each
        # time.
        epoch = self.epoch if self.shuffle else 0
        first = self._skip_items if epoch == self._skip_epoch else 0
        for index in self.order(epoch)[first:].tolist():
            yield epoch, index

    def skip(self, epoch: int, items: int) -> None:
        """Continue in the middle of an epoch: let ``epoch``, and it alone, start ``items`` items in.

        The length does not shrink, because Lightning counts the batches that were done before towards the
        epoch's total. The epoch is set as well, because Lightning asks for the first iterator before it calls
        :meth:`set_epoch`.

        Args:
            epoch: The epoch to continue.
            items: How many of this rank's items of that epoch were consumed already.
        """
        self._skip_epoch, self._skip_items = epoch, items
        self.set_epoch(epoch)
