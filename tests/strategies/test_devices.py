"""Which devices there are is made up here: no test of this file needs one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from i2i_lightning.strategies.devices import STRATEGIES, check_devices
from i2i_lightning.types import UserError

DDP = "ddp_find_unused_parameters_true"


@pytest.fixture(autouse=True)
def a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    have(monkeypatch, 0)


def have(monkeypatch: pytest.MonkeyPatch, gpus: int, apple: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize("devices", [1, 2, "2", "auto", -1, [0], [0, 1], "0,1"])
def test_devices_that_are_there(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    check_devices("gpu", devices, strategy=DDP)
    check_devices("auto", devices, strategy=DDP)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (3, "trainer.devices=3: this machine has 2 GPUs; take trainer.devices=auto for all, or trainer=cpu"),
        ([0, 2], r"trainer.devices=\[0, 2\]: this machine has 2 GPUs, counted from 0 to 1; take"),
        ("0,5", "trainer.devices=0,5: this machine has 2 GPUs, counted from 0 to 1; take"),
        ([], r"trainer.devices=\[\]: give at least 1"),
        ("all", "trainer.devices=all: give a number, auto, or the GPUs to take"),
    ],
)
def test_devices_that_are_not_there(devices: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    with pytest.raises(UserError, match=message):
        check_devices("gpu", devices, strategy=DDP)


def test_one_process_for_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 2)
    check_devices("gpu", 1, strategy="auto")
    with pytest.raises(UserError, match="strategy=auto does not suit 2 devices"):
        check_devices("gpu", "auto", strategy="auto")


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_strategies_under_which_players_take_turns(strategy: str) -> None:
    check_devices("cpu", 2, strategy=strategy)
    plain = strategy.removesuffix("_find_unused_parameters_true")
    with pytest.raises(UserError, match=f"trainer.strategy={plain}: players take turns.*strategy={strategy}"):
        check_devices("cpu", 2, strategy=plain)


@pytest.mark.parametrize(("precision", "option"), [("16-mixed", "fp16"), ("64-true", "fp64")])
def test_number_formats_that_apples_gpu_lacks(
    precision: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 0, apple=True)
    check_devices("mps", 1, precision="32-true")
    check_devices("mps", 1, precision="bf16-mixed")
    check_devices("cpu", 1, precision=precision)
    for accelerator in ("mps", "gpu", "auto"):
        with pytest.raises(UserError, match=f"precision={option}: not on MPS"):
            check_devices(accelerator, 1, precision=precision)
    with pytest.raises(UserError, match="this machine has 1 GPU; take"):
        check_devices("mps", 2, strategy=DDP)


@pytest.mark.parametrize(
    "environment",
    [
        {"MASTER_ADDR": "node1", "NODE_RANK": "0"},  # by hand
        {"MASTER_ADDR": "node1", "RANK": "1", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "x"},  # torchrun
    ],
)
def test_several_nodes_are_told_of_each_other(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="num_nodes=2: nobody has told this process"):
        check_devices("cpu", 1, num_nodes=2, strategy=DDP)
    check_devices("cpu", 1, num_nodes=2, strategy=DDP, clustered=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_devices("cpu", 1, num_nodes=2, strategy=DDP)
