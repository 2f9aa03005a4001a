"""What a process makes of SLURM's environment, and how ranks find each other."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from i2i_lightning.strategies import cluster
from i2i_lightning.strategies.cluster import SlurmTasks, cluster_environment, meet, trainer_settings
from i2i_lightning.types import UserError

# What srun 22.05 tells the second of two tasks on the second of two nodes.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "pix2pix",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
BATCH = {key: value for key, value in TASK.items() if "STEP" not in key} | {"SLURM_PROCID": "0"}
SINGLE = {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}
ONE_NODE = {**TASK, "SLURM_STEP_NODELIST": "gpu07", "SLURM_STEP_TASKS_PER_NODE": "4"}


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name)


def enter(monkeypatch: pytest.MonkeyPatch, *environments: dict[str, str]) -> None:
    for environment in environments:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)


def test_tasks_of_srun_are_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they were asked for by -n or by --ntasks-per-node, which Lightning would insist on."""
    enter(monkeypatch, TASK, {"MASTER_ADDR": "10.0.0.7"})
    environment = cluster_environment()
    assert isinstance(environment, SlurmTasks)
    assert environment.creates_processes_externally
    assert environment.world_size() == 4
    assert (environment.global_rank(), environment.local_rank(), environment.node_rank()) == (3, 1, 1)
    assert environment.main_address == "10.0.0.7"


@pytest.mark.parametrize("environment", [BATCH, SINGLE], ids=["batch script", "single task"])
def test_other_processes_are_ordinary_runs(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(monkeypatch, environment)
    assert isinstance(cluster_environment(), LightningEnvironment)
    forgotten = "SLURM_STEP_ID" not in environment
    assert ("Put srun in front" in capsys.readouterr().err) == forgotten


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_in_an_allocation_is_no_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, TASK, {"SLURM_JOB_NAME": name, "SLURM_PROCID": "0"})
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert isinstance(cluster_environment(), LightningEnvironment)
    monkeypatch.setattr(os, "isatty", lambda _: False)  # srun -n 4 bash run.sh
    assert isinstance(cluster_environment(), SlurmTasks)


def test_no_slurm_and_torchrun_are_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_environment() is None
    enter(monkeypatch, TASK, {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"})
    assert cluster_environment() is None


def test_uneven_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, TASK, {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NUM_TASKS": "3"})
    with pytest.raises(UserError, match=r"srun started 2 \+ 1 tasks on 2 nodes"):
        cluster_environment()


@pytest.mark.parametrize(
    ("text", "tasks"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,2(x2)", [1, 2, 2]), ("", [1])]
)
def test_tasks_per_node(text: str, tasks: list[int]) -> None:
    assert cluster.tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("r[1-2]n[3-4]", "r1n3"),
        ("a[7]", "a7"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert cluster.first_node(nodes) == first


def test_address_and_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, ONE_NODE)
    assert SlurmTasks().main_address == "127.0.0.1"
    port = SlurmTasks().main_port
    assert 15000 <= port < 25000
    enter(monkeypatch, {"SLURM_STEP_ID": "1"})
    assert SlurmTasks().main_port != port
    enter(monkeypatch, {"MASTER_PORT": "29500"})
    assert SlurmTasks().main_port == 29500

    def resolve(name: str, _: None) -> None:
        if name == "gpu07":
            raise socket.gaierror

    enter(monkeypatch, TASK)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert SlurmTasks().main_address == "gpu07"
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\necho NodeName=gpu07 Arch=x86_64 NodeAddr=10.1.0.7 NodeHostName=gpu07\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert SlurmTasks().main_address == "10.1.0.7"
    program.write_text("#!/bin/sh\necho NodeName=gpu07 NodeAddr=gpu07\n")
    with pytest.raises(UserError, match=r"node gpu07, where rank 0 runs.*\nexport MASTER_ADDR"):
        _ = SlurmTasks().main_address


@pytest.mark.parametrize("devices", [1, "auto", -1, 2])
def test_trainer_takes_what_slurm_gave(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_settings(None, devices, 1, "auto") == {}
    enter(monkeypatch, TASK)
    ddp = "ddp_find_unused_parameters_true"
    settings = trainer_settings(cluster_environment(), devices, 1, "auto")
    assert settings == {"devices": 2, "num_nodes": 2, "strategy": ddp}
    assert trainer_settings(cluster_environment(), [1, 3], 2, ddp)["devices"] == [1, 3]


@pytest.mark.parametrize(
    ("devices", "num_nodes", "strategy", "message"),
    [
        (3, 1, "auto", "trainer.devices=3: srun started 2 tasks on each node"),
        (2, 3, "auto", "trainer.num_nodes=3: srun started tasks on 2"),
        (2, 2, "ddp_spawn_find_unused_parameters_true", "take trainer.strategy=auto"),
    ],
)
def test_mismatches(
    devices: int, num_nodes: int, strategy: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, TASK)
    with pytest.raises(UserError, match=message):
        trainer_settings(cluster_environment(), devices, num_nodes, strategy)


# The meeting.


class Rank(SlurmTasks):
    """One of several ranks in this process."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def global_rank(self) -> int:
        return self.rank


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = int(server.getsockname()[1])
    enter(monkeypatch, ONE_NODE, {"MASTER_PORT": str(number), "MASTER_ADDR": "127.0.0.1"})
    return number


def start(ranks: list[int], timeout_s: float = 30, delay_s: float = 0) -> dict[int, str]:
    """Let ``ranks`` meet, rank 0 after a while; return how each ended."""
    ends: dict[int, str] = {}

    def run(rank: int) -> None:
        try:
            meet(Rank(rank), timeout_s=timeout_s, say_every_s=0.2)
            ends[rank] = "met"
        except UserError as error:
            ends[rank] = str(error)

    threads = {rank: threading.Thread(target=run, args=(rank,)) for rank in ranks}
    for rank, thread in threads.items():
        if rank:
            thread.start()
    if 0 in threads:
        threading.Event().wait(delay_s)
        threads[0].start()
    for thread in threads.values():
        thread.join(60)
        assert not thread.is_alive()
    return ends


def test_all_meet(port: int) -> None:
    assert start([0, 1, 2, 3]) == dict.fromkeys(range(4), "met")
    with socket.create_server(("127.0.0.1", port)):  # free again, for torch
        pass


def test_waiting_is_said(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(start([0, 1, 2, 3], delay_s=0.9).values()) == {"met"}
    said = capsys.readouterr().out
    for rank in (1, 2, 3):
        assert f"rank {rank} of 4 waits for rank 0 at 127.0.0.1:{port} (" in said


def test_a_rank_that_does_not_come_is_named(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    ends = start([0, 1, 3], timeout_s=1.5)
    place = f"127.0.0.1:{port}"
    assert ends[0].startswith(f"rank 0 of 4 waited 2 s in vain for rank 2 at {place}\n")
    assert "MASTER_ADDR" in ends[0]
    assert ends[1].startswith("rank 1 of 4 waited 2 s in vain for ")
    assert f"rank 0 of 4 waits for rank 2 at {place}" in capsys.readouterr().out


def test_rank_0_that_does_not_come(port: int) -> None:
    ends = start([2], timeout_s=0.8)
    assert ends[2].startswith(f"rank 2 of 4 waited 1 s in vain for rank 0 at 127.0.0.1:{port}\nConnection ")
    assert all(len(line) < 250 for line in ends[2].splitlines())


def test_strangers_are_not_counted(port: int) -> None:
    """Somebody else at the port, and somebody else's rank at ours."""

    def call() -> None:
        for words in (b"GET / HTTP/1.1\n", b"i2i_lightning 1.0.0 2\n", b"", b"\xff\xfe\n"):
            for _ in range(100):
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1) as line:
                        line.sendall(words)
                    break
                except OSError:
                    threading.Event().wait(0.02)

    stranger = threading.Thread(target=call)
    stranger.start()
    ends = start([0, 1, 3], timeout_s=2)
    stranger.join()
    assert "in vain for rank 2 at" in ends[0]


def test_a_port_that_is_taken(port: int) -> None:
    with socket.create_server(("", port)):
        ends = start([0], timeout_s=0.8)
    assert "in vain for the port at" in ends[0]
    assert "MASTER_PORT" in ends[0]


def test_nobody_to_meet() -> None:
    meet(None)
    meet(LightningEnvironment())


def test_many_missing_ranks_are_counted() -> None:
    assert cluster._name_ranks([5]) == "rank 5"
    assert cluster._name_ranks(range(1, 12)) == "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more"
