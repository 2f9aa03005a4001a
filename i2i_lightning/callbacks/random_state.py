"""The random states of a run: each process draws noise of its own, and goes on with it after a resume."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning import Trainer

from i2i_lightning.methods.ranks import gather


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as plain containers.

    Args:
        device: The device that draws too, where that is a GPU.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    device = device or torch.device("cpu")
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "mps": [torch.mps.get_rng_state()] if device.type == "mps" else [],
    }


def set_random_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Set the generators back to what ``random_state`` returned; the device's where there was such a one."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and state["cuda"]:
        # Earlier versions kept the states of all of a machine's GPUs.
        index = (device.index or 0) if len(state["cuda"]) > 1 else 0
        torch.cuda.set_rng_state(state["cuda"][min(index, len(state["cuda"]) - 1)], device)
    if device is not None and device.type == "mps" and state.get("mps"):
        torch.mps.set_rng_state(state["mps"][0])


def gather_random_states(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the states of all processes, by rank; to be called on all of them."""
    return gather(trainer, random_state(trainer.strategy.root_device))


def restore_random_states(trainer: Trainer, states: Sequence[Mapping[str, Any]], batches: int) -> None:
    """Set this process back to its own state; one that there was not then is seeded afresh.

    Args:
        trainer: The trainer.
        states: What ``gather_random_states`` returned, in this run or an earlier one.
        batches: Batches that the run has trained, so that a fresh process repeats no noise of its beginning.
    """
    if trainer.global_rank < len(states):
        set_random_state(states[trainer.global_rank], trainer.strategy.root_device)
    else:
        seed_rank(trainer, batches)


def seed_rank(trainer: Trainer, batches: int = 0) -> None:
    """Let every process but the first draw numbers of its own, from the run's seed and its rank.

    All processes start from one seed, so that they build the same networks; with it they would also drop the
    same activations. The first keeps its state: a run in one process does not depend on this.
    """
    if trainer.global_rank == 0:
        return
    words = np.random.SeedSequence([torch.initial_seed() % 2**32, trainer.global_rank, batches])
    seed = int(words.generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # and every GPU's
