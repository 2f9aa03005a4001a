"""Every combination of conf/trainer, conf/precision and conf/method, and the table that says so."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import strategies
from benchmarks.strategies import Cell, cells
from i2i_lightning.types import UserError

LIGHTNINGS_NAMES = {
    "fp32": "32-true",
    "tf32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "fp64": "64-true",
}
HERE = ["default", "cpu"]
SEVERAL = ["ddp", "ddp_spawn", "multi_node"]


def check(line: dict[str, Any], processes: int) -> None:
    assert line["processes"] == processes
    assert line["batches"] >= 4
    assert line["finite"]
    assert line["unmoved"] == [], "players whose weights did not change, or latents"
    assert line["touched"] == [], "an inversion leaves its generator as it is"
    assert line["equal"], "all processes must end with the same weights"
    assert line["precision_of_lightning"] == LIGHTNINGS_NAMES[line["precision"]]


def lines(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def test_every_strategy_is_run_or_needs_hardware() -> None:
    assert {cell.strategy for cell in cells()} == {*HERE, *SEVERAL, *strategies.HARDWARE}
    assert {cell.precision for cell in cells()} == set(LIGHTNINGS_NAMES)


def test_the_table_is_that_of_the_configs(checkout: Path) -> None:
    text = (checkout / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert strategies.document(text) == text, "run python -m benchmarks.strategies --write"
    for cell in cells():
        assert f"| {cell.strategy} | {cell.precision} |" in text


@pytest.mark.parametrize("cell", cells(HERE), ids=lambda cell: "-".join(vars(cell).values()))
def test_on_one_cpu(cell: Cell, tmp_path: Path) -> None:
    results = tmp_path / "cells.jsonl"
    refusal = (
        pytest.raises(UserError, match=f"precision={cell.precision}") if cell.is_refused else nullcontext()
    )
    with strategies.configs(), refusal:
        strategies.run(cell, tmp_path / "run", results, ["trainer.accelerator=cpu"])
    if not cell.is_refused:
        check(*lines(results), processes=1)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", cells(["gpu"]), ids=lambda cell: "-".join(vars(cell).values()))
def test_on_one_gpu(cell: Cell, tmp_path: Path) -> None:
    if cell.is_refused:
        pytest.skip("refused, as on a CPU")
    results = tmp_path / "cells.jsonl"
    with strategies.configs():
        strategies.run(cell, tmp_path / "run", results)
    check(*lines(results), processes=1)


def launch(
    strategy: str, results: Path, checkout: Path, environments: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Run all cells of a strategy in one launch for each environment; return a line for each cell."""
    command = [sys.executable, "-m", "benchmarks.strategies", "--run", strategy, "--results", str(results)]
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK")
    }
    plain |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = [
        subprocess.Popen(
            command,
            cwd=checkout,
            env=plain | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        errors = [process.communicate(timeout=900)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)[-3000:]
    return lines(results)


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", SEVERAL)
def test_in_two_processes(strategy: str, checkout: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Two nodes are two commands on this machine, told of each other as by hand.
    nodes = [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)} for node in range(2)
    ]
    environments = nodes if strategy == "multi_node" else [{}]
    found = launch(strategy, tmp_path / "cells.jsonl", checkout, environments)
    ran = [Cell(line["strategy"], line["precision"], line["method"]) for line in found]
    assert ran == [cell for cell in cells([strategy]) if not cell.is_refused]
    for line in found:
        check(line, processes=2)
