"""The processes of one run: what each has of its own, brought together for a checkpoint; how they part."""

from __future__ import annotations

import functools
import multiprocessing.util
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


@functools.cache
def leave_at_exit(process: int) -> None:
    """Let this process, number ``process``, leave its group when it ends, while Python is still there.

    Lightning does so for NCCL. The threads of a Gloo group that nobody left may outlive the interpreter, and
    abort a process that had done its work: torch then calls the run failed.
    """
    multiprocessing.util.Finalize(None, _leave, exitpriority=50)


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
