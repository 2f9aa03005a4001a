"""Whether this machine has the devices that a run asks for, said before Lightning says it in many lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from i2i_lightning.types import UserError

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PLAIN_DDP = ("ddp", "ddp_spawn")
UNUSED = "_find_unused_parameters_true"
STRATEGIES = ("auto", *(name + UNUSED for name in PLAIN_DDP))
MPS_PRECISIONS = ("32-true", "bf16-mixed")


def check_devices(
    accelerator: str = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int = 1,
    strategy: Any = "auto",
    precision: str = "32-true",
    clustered: bool = False,
) -> None:
    """Refuse what this machine cannot do, and strategies under which players cannot take turns.

    Args:
        accelerator: ``trainer.accelerator``.
        devices: ``trainer.devices``: a count, ``auto`` or -1 for all, or the indices of GPUs.
        num_nodes: ``trainer.num_nodes``.
        strategy: ``trainer.strategy``; one that is an object already is taken as it is.
        precision: What Lightning calls the run's number format, such as ``bf16-mixed``.
        clustered: Whether a cluster started this process, and tells it where the others are.

    Raises:
        UserError: Naming the key, and what this machine has instead.
    """
    kind = _kind(accelerator)
    count = _check_count(kind, devices, clustered)
    _check_strategy(strategy, count * num_nodes)
    if kind == "mps" and precision not in MPS_PRECISIONS:
        raise UserError(
            f"precision={_option(precision)}: not on MPS, Apple's GPU; take precision=fp32 or bf16, or "
            "trainer=cpu"
        )
    if num_nodes > 1 and not clustered and not _knows_the_others():
        raise UserError(
            f"trainer.num_nodes={num_nodes}: nobody has told this process where the others are\n"
            "take launcher=slurm or torchrun, or start this command on each machine with MASTER_ADDR and "
            "MASTER_PORT of the first, and NODE_RANK=0, 1, ..."
        )


def _kind(accelerator: str) -> str:
    """Return what the run computes on: ``cuda``, ``mps`` or ``cpu``.

    Raises:
        UserError: If this machine has none of the kind, or nobody has.
    """
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator}: give one of {', '.join(ACCELERATORS)}")
    has_mps = torch.backends.mps.is_available()
    if accelerator == "auto":
        return "mps" if has_mps else "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "mps" and not has_mps:
        raise UserError(
            "trainer.accelerator=mps: torch finds no Apple GPU on this machine; take trainer=cpu or "
            "trainer=default"
        )
    if accelerator in ("gpu", "cuda"):
        if torch.cuda.is_available():
            return "cuda"
        if accelerator == "gpu" and has_mps:
            return "mps"
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no GPU on this machine; take trainer=cpu or "
            "trainer=default"
        )
    return accelerator


def _check_count(kind: str, devices: int | str | Sequence[int], clustered: bool) -> int:
    """Return how many devices this is.

    Raises:
        UserError: If there are not as many, or none is asked for.
    """
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind)
    if devices in ("auto", -1, "-1"):
        return there or 1
    wanted = _parsed(devices)
    indices = wanted if isinstance(wanted, list) else range(wanted)
    if len(indices) == 0 or min(indices, default=0) < 0:
        raise UserError(f"trainer.devices={devices}: give at least 1, or auto for all there are")
    if there is None:
        if isinstance(wanted, list):
            raise UserError(f"trainer.devices={devices}: processors have no numbers; give how many processes")
        return len(indices)
    if max(indices) >= there:
        having = f"{there} GPU{'s' if there > 1 else ''}"
        if clustered:
            raise UserError(
                f"trainer.devices={devices}: this task sees {having}, and each is to see all of its node; "
                "give srun --gpus-per-node and not --gpus-per-task, or --gpu-bind=none"
            )
        if isinstance(wanted, list):
            having += f", counted from 0 to {there - 1}" if there > 1 else ", number 0"
        raise UserError(
            f"trainer.devices={devices}: this machine has {having}; take trainer.devices=auto for all, or "
            "trainer=cpu"
        )
    return len(indices)


def _parsed(devices: int | str | Sequence[int]) -> int | list[int]:
    """Return a count, or indices; Lightning also reads ``"0,2"`` as indices and ``"2"`` as a count."""
    if isinstance(devices, int):
        return devices
    if not isinstance(devices, str):
        return [int(device) for device in devices]
    try:
        return [int(part) for part in devices.split(",") if part] if "," in devices else int(devices)
    except ValueError:
        raise UserError(
            f"trainer.devices={devices}: give a number, auto, or the GPUs to take, trainer.devices=[0,1]"
        ) from None


def _check_strategy(strategy: Any, processes: int) -> None:
    if not isinstance(strategy, str):
        return
    if strategy in PLAIN_DDP:
        raise UserError(
            f"trainer.strategy={strategy}: players take turns, which it takes for an error; take "
            f"trainer.strategy={strategy}{UNUSED}"
        )
    if strategy not in STRATEGIES:
        raise UserError(f"trainer.strategy={strategy}: give one of {', '.join(STRATEGIES)}")
    if strategy == "auto" and processes > 1:
        raise UserError(
            f"trainer.strategy=auto does not suit {processes} devices: take trainer=ddp, ddp_spawn or "
            "multi_node, or trainer.devices=1"
        )


def _option(precision: str) -> str:
    """Return the option of the precision group that Lightning's name stands for."""
    return {"16-mixed": "fp16", "64-true": "fp64"}.get(precision, precision)


def _knows_the_others() -> bool:
    """Return whether the environment says where the first machine is, and which one this is."""
    if TorchElasticEnvironment.detect() or LSFEnvironment.detect() or MPIEnvironment.detect():
        return True
    return "MASTER_ADDR" in os.environ and bool({"NODE_RANK", "GROUP_RANK", "RANK"} & set(os.environ))
