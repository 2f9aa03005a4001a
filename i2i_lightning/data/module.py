"""What every data module shares: loaders over ``(epoch, index)`` keys, exact resume, the step to floats."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from i2i_lightning.data.cache import available_cores
from i2i_lightning.data.dataset import Item, KeyedDataset, collate
from i2i_lightning.data.sampler import EpochSampler, Key
from i2i_lightning.types import Batch, ImageFormat, UserError

__all__ = ["ImageDataModule", "Item", "KeyedDataset", "available_cores", "collate"]


def outlive_signals(worker: int) -> None:
    """Keep the signals that are meant for a run from its worker number ``worker``.

    A terminal sends Ctrl+C to the whole group of processes, and SLURM sends its signals to every process that
    a task has started, whatever their groups. A worker that died of one would take the run with it before it
    has saved. Workers end when their parent does in any case.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signals = _signals_of_runs()
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _signals_of_runs() -> set[signal.Signals]:
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    return {getattr(signal, name) for name in names if hasattr(signal, name)}


class _Loader(DataLoader[Item]):
    """A loader whose workers are deaf to the signals of a run from their first moment.

    Between its birth and :func:`outlive_signals` a worker would die of one. So they are born with these
    signals held back, which a process inherits; the parent gets those of its own afterwards.
    """

    def __iter__(self) -> Any:
        if self.num_workers == 0 or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        if (self.multiprocessing_context or multiprocessing).get_start_method() != "fork":
            # The first worker would start this process, which lets the signals in again.
            multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _signals_of_runs())
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_workers() -> None:
    # At its end a process sends its workers a SIGTERM, to which ours do not listen, and waits for them.
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        # Torch listens for workers that die: an error from it would take the place of the exit status.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@functools.cache
def _workers_end_with(process: int) -> None:
    """Let the workers of this process, number ``process``, end when it does."""
    multiprocessing.util.Finalize(None, _end_workers, exitpriority=100)


class ImageDataModule(LightningDataModule, ABC):
    """The base of every data module.

    A subclass sets ``train_set``, ``val_set`` and ``test_set`` in :meth:`setup`, declares ``in_channels``,
    ``out_channels`` and ``size_px``, and implements :meth:`to_network` and the two ``display_`` methods.
    Batches travel to the device as the data set made them (8 or 16-bit integers where possible: a quarter of
    the bytes) and become floats there.

    Args:
        batch_size: Training pairs per rank and step, at least 1.
        val_batch_size: Validation and test pairs per rank and step, at least 1.
        num_workers: Worker processes per loader. None takes 0 when the pixels are in memory already, where a
            worker would only add a copy between processes, else up to 4.
        seed: The data seed: order and augmentation are pure functions of it.

    Attributes:
        in_channels: Channels of the network's input (classes, for a one-hot label map).
        out_channels: Channels of its target.
        size_px: (height, width) of a training item, or None where items differ.
        aligned: Whether ``real_b`` shows what ``real_a`` shows; False for unpaired data.
        one_sided: Whether batches have images of one domain alone, ``real``, and nothing is translated.
        label_dim: Number of classes of one-sided data; 0 where it has none.
        cache_in_memory: Whether items come from memory; a subclass sets it before the loaders are made.
        multiprocessing_context: How workers are started ("fork", "spawn", ...); None is Python's default.
    """

    in_channels: int
    out_channels: int
    size_px: tuple[int, int] | None
    aligned = True
    one_sided = False
    label_dim = 0

    def __init__(
        self, batch_size: int = 1, val_batch_size: int = 1, num_workers: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("val_batch_size", val_batch_size, 1),
            ("num_workers", 0 if num_workers is None else num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UserError(f"data.{key}={value}: must be at least {least}")
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_set: KeyedDataset | None = None
        self.val_set: KeyedDataset | None = None
        self.test_set: KeyedDataset | None = None
        self.cache_in_memory = False
        self.multiprocessing_context: str | None = None
        self._odd_sizes_px: set[tuple[int, int]] = set()
        self._train_sampler: EpochSampler | None = None
        self._continue_at: Key | None = None

    # What a subclass provides.

    @abstractmethod
    def to_network(self, batch: Item) -> Batch:
        """Turn a loader's batch into what the networks see, on whatever device it lies.

        Args:
            batch: Integer or float tensors with the batch axis in front, and names.

        Returns:
            Float images in [-1, 1], float one-hot label maps in {0, 1}; see
            :class:`~i2i_lightning.types.PairedBatch`, :class:`~i2i_lightning.types.UnpairedBatch` and
            :class:`~i2i_lightning.types.ImageBatch`.
        """

    @abstractmethod
    def display_input(self, real_a: Tensor) -> Tensor:
        """Return network inputs ``(N, in_channels, H, W)`` as RGB for people, uint8 ``(N, 3, H, W)``."""

    @abstractmethod
    def display_output(self, b: Tensor, real_a: Tensor) -> Tensor:
        """Return outputs or targets ``(N, out_channels, H, W)`` as RGB for people, uint8 ``(N, 3, H, W)``.

        Args:
            b: An output or a target, in network space.
            real_a: The inputs it belongs to, for targets that only mean something together with them.
        """

    # What every subclass inherits.

    def formats(self) -> tuple[ImageFormat, ImageFormat]:
        """Return what a network's inputs and outputs are; checkpoints save it, translation reads it."""
        return ImageFormat("image", self.in_channels), ImageFormat("image", self.out_channels)

    @property
    def sizes_px(self) -> set[tuple[int, int]]:
        """Every (height, width) that training and validation will meet, as far as set-up knows them."""
        return self._odd_sizes_px | ({self.size_px} if self.size_px is not None else set())

    @property
    def num_train_images(self) -> int:
        """The number of training pairs."""
        return len(self._require(self.train_set, "train"))

    @property
    def effective_num_workers(self) -> int:
        """The number of worker processes per loader, the default resolved."""
        if self.num_workers is not None:
            return self.num_workers
        return 0 if self.cache_in_memory else min(4, available_cores())

    def train_dataloader(self) -> DataLoader[Item]:
        """Return the shuffled, augmented loader; after a resume it starts where the run stopped."""
        dataset = self._require(self.train_set, "train")
        self._train_sampler = self._sampler(dataset)
        if self._continue_at is not None:
            self._train_sampler.skip(*self._continue_at)
        # A short last batch would change the shapes; a data set smaller than one batch has no other.
        drop_last = len(self._train_sampler) >= self.batch_size
        return self._loader(dataset, self._train_sampler, self.batch_size, drop_last)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return the validation loader: in order, without augmentation."""
        return self.ordered_dataloader("val")

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the test loader: in order, without augmentation."""
        return self.ordered_dataloader("test")

    def ordered_dataloader(self, split: str) -> DataLoader[Item]:
        """Return a loader over all of a split (train, val or test) in order, by ``val_batch_size``.

        Several processes are given whole batches in turn: the same ones that a single process would have.
        Items of the training split are cut and mirrored as the data module was told to.
        """
        dataset = self._require(getattr(self, f"{split}_set"), split)
        return self._loader(dataset, self._sampler(dataset, self.val_batch_size), self.val_batch_size, False)

    def preview_batch(self, n: int) -> Batch:
        """Return the first ``n`` validation items (fewer if there are fewer) as network floats on the CPU."""
        dataset = self._require(self.val_set, "val")
        return self.to_network(collate([dataset[0, index] for index in range(min(n, len(dataset)))]))

    def on_after_batch_transfer(self, batch: Item, dataloader_idx: int) -> Batch:
        """Turn a batch into floats once it is on the device."""
        network_batch = self.to_network(batch)
        if self.trainer is None:
            return network_batch
        # Lightning casts to the run's precision before the transfer, when these were integers still.
        return cast(Batch, self.trainer.precision_plugin.convert_input(network_batch))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data: the epoch, and how many of this rank's items of it were consumed.

        It is read off the trainer's count of finished batches, because a loader with workers runs ahead of
        the training.
        """
        if self._train_sampler is None or self.trainer is None:
            epoch, items = self._continue_at or (0, 0)
            return {"epoch": epoch, "items": items}
        progress = cast(Any, self.trainer.fit_loop.epoch_loop.batch_progress.current)
        batches = int(progress.processed)
        if batches >= self.trainer.num_training_batches:
            return {"epoch": self._train_sampler.epoch + 1, "items": 0}
        return {"epoch": self._train_sampler.epoch, "items": batches * self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader continue at a position that :meth:`state_dict` returned."""
        self._continue_at = int(state_dict["epoch"]), int(state_dict["items"])
        # Lightning looks for the position in the loader only, and would warn that it is lost.
        warnings.filterwarnings("ignore", message=r".*your dataloader is not resumable")
        if self._train_sampler is not None:
            self._train_sampler.skip(*self._continue_at)

    def teardown(self, stage: str) -> None:
        """Forget the position of a fit that is over, so that another one starts afresh."""
        if stage == "fit":
            self._continue_at = None

    def _require(self, dataset: KeyedDataset | None, split: str) -> KeyedDataset:
        if dataset is None:
            raise UserError(f"the {split} split of {type(self).__name__} is not there: call setup() first")
        return dataset

    def _sampler(self, dataset: KeyedDataset, ordered_by: int | None = None) -> EpochSampler:
        """Return a sampler that shuffles, or that deals whole batches of ``ordered_by`` items in order."""
        world_size = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        shuffle, block = ordered_by is None, ordered_by or 1
        return EpochSampler(len(dataset), shuffle, self.seed, world_size, rank, block)

    def _loader(
        self, dataset: KeyedDataset, sampler: EpochSampler, batch_size: int, drop_last: bool
    ) -> DataLoader[Item]:
        workers = self.effective_num_workers
        if workers > 0:
            _workers_end_with(os.getpid())
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return _Loader(
            cast(Any, dataset),
            batch_size=batch_size,
            sampler=cast(Iterable[int], sampler),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=on_cuda,
            drop_last=drop_last,
            persistent_workers=workers > 0,
            multiprocessing_context=self.multiprocessing_context if workers > 0 else None,
            worker_init_fn=outlive_signals if workers > 0 else None,
            # Every iterator draws a seed for its workers; from the global state, that would move the run's
            # random numbers.
            generator=torch.Generator().manual_seed(self.seed),
        )
