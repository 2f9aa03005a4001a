"""The order of the data, as a pure function of the seed and the epoch.

A sampler hands out keys ``(epoch, index)`` rather than bare indices. The data set draws its augmentation from
the key, so what an item looks like depends on nothing else: not on the number of workers, not on how they
were started, not on whether they outlive the epoch, and not on any global random state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data.distributed import DistributedSampler

Key = tuple[int, int]
"""``(epoch, index)``: which item, and which of its augmented versions."""

AnyKey = int | Key
"""A key, or a bare index where the epoch does not matter (then it is 0)."""

Indices = npt.NDArray[np.int64]

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
    permutation, which is dealt out in blocks, one to each rank in turn; where their number does not divide,
    some ranks are given blocks from the start once more, so that all see equally many. With blocks as large
    as a batch, the batches of all ranks together are those of a single one.

    It derives from torch's class of the same purpose only so that Lightning recognises it as distributed
    already and does not wrap or replace it.

    Args:
        size: The number of items in the data set, at least 1.
        shuffle: Permute the items, anew each epoch.
        seed: The data seed, at least 0.
        num_replicas: The number of ranks.
        rank: This rank, from 0.
        block: Items dealt together, at least 1; the last block may be smaller.
    """

    def __init__(
        self,
        size: int,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        block: int = 1,
    ) -> None:
        super().__init__(range(size), num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.block = block
        self.num_samples = len(self._dealt()[0])
        self._skip_epoch = -1
        self._skip_items = 0

    def order(self, epoch: int) -> Indices:
        """Return this rank's indices in ``epoch``, in order, int64 of shape ``(len(self),)``."""
        indices = np.arange(self.size, dtype=np.int64)
        if self.shuffle:
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, _ORDER_STREAM, epoch, 0]))
            indices = rng.permutation(indices)
        return indices[self._dealt()[0]]

    def places(self) -> Indices:
        """Return the place in the whole order of each of this rank's items, -1 for those given out again.

        int64 of shape ``(len(self),)``; without shuffling, the items' indices.
        """
        places, is_first = self._dealt()
        return np.where(is_first, places, -1)

    def _dealt(self) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Return which places of the whole order come to this rank, and whether for the first time."""
        blocks = -(-self.size // self.block)
        rounds = -(-blocks // self.num_replicas)
        turns = np.arange(rounds, dtype=np.int64) * self.num_replicas + self.rank
        places = (turns % blocks)[:, None] * self.block + np.arange(self.block, dtype=np.int64)
        there = places < self.size
        return places[there], np.broadcast_to((turns < blocks)[:, None], there.shape)[there]

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
