"""Jobs on a real SLURM: signalled, pre-empted or out of time and requeued, over nodes, failing, killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.cli.slurm.jobs import parse_jobs
from i2i_lightning.strategies.cluster import node_address
from tests.loggers.conftest import Parts
from tests.methods.test_resume import assert_same

pytestmark = pytest.mark.slurm

BATCHES = 100
TINY = [
    "data=toyfaces",
    "data.crop_px=32",
    "data.num_val=2",
    "data.num_test=2",
    "data.batch_size=1",
    "data.num_workers=1",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "generator.base_channels=2",
    "discriminator.base_channels=2",
    "discriminator.num_layers=1",
    "callbacks.checkpoints.monitor=null",
    "callbacks.checkpoints.every_n_batches=5",  # shows from outside how far it is
    *(f"callbacks.{name}=null" for name in ("gallery", "previews", "toyfaces", "health", "validation")),
]
TIMEOUT_S = 400


class Command:
    """An ``i2i-train`` in the background, and what it has printed so far."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        command = [sys.executable, "-u", "-m", "i2i_lightning.commands.train", *words]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += [""]
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def printed(self) -> str:
        return "\n".join(self.lines)

    def wait(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self.reader.join(10)
        return status

    def wait_for(self, pattern: str) -> re.Match[str]:
        return until(lambda: re.search(pattern, self.printed), f"{pattern} in what the command prints", self)


def until(found: Callable[[], Any], what: str, command: Command) -> Any:
    """Return what ``found`` returns once that is something."""
    began = time.monotonic()
    while not (result := found()):
        ended = command.process.poll() is not None and not found()
        assert not ended, f"no {what}:\n{command.printed}"
        assert time.monotonic() - began < TIMEOUT_S, f"no {what}:\n{command.printed}"
        time.sleep(0.1)
    return result


Start = Callable[..., Command]


@pytest.fixture
def start(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start commands in an empty folder; end them and their jobs."""
    commands: list[Command] = []
    monkeypatch.setenv("WANDB_MODE", "offline")

    def begin(*words: str) -> Command:
        commands.append(Command(tmp_path, [*TINY, *words]))
        return commands[-1]

    yield begin
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
    subprocess.run(["scancel", "--user", "root"], check=False)
    subprocess.run(["scancel", "--user", "root", "--signal=KILL"], check=False)


def facts(job: str) -> dict[str, str]:
    done = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=True
    )
    return parse_jobs(done.stdout)[job]


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def batches_saved(run: Path) -> int:
    """Return after how many batches of its epoch the last checkpoint was written; 0 without one."""
    if not last(run).is_file():
        return 0
    progress = read_checkpoint(last(run))["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return int(progress["current"]["completed"])


def signal_in_an_epoch(command: Command, jobs: dict[str, Path]) -> None:
    """Signal every job in the middle of an epoch, and see that it was saved there and put back.

    Args:
        command: What submitted them.
        jobs: The run folder of each; whichever comes to its first checkpoint is the first.
    """
    waiting, saved = dict(jobs), {}

    def all_are_signalled() -> bool:
        for job, run in list(waiting.items()):
            if 0 < batches_saved(run) < BATCHES // 2:
                subprocess.run(["scancel", "--signal=USR1", job], check=True)
                del waiting[job]
        return not waiting

    def all_are_back() -> bool:
        for job, run in jobs.items():
            if job not in saved and facts(job).get("Restarts") == "1":
                # SLURM holds the job back for some seconds: this is what it will go on from.
                saved[job] = batches_saved(run)
        return saved.keys() == jobs.keys()

    until(all_are_signalled, f"checkpoint in an epoch of {jobs}", command)
    until(all_are_back, f"restart of {jobs}", command)
    assert all(0 < batches < BATCHES for batches in saved.values()), saved


def assert_ended_alike(run: Path, reference: Path) -> None:
    left, right = read_checkpoint(last(run)), read_checkpoint(last(reference))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "loops"):
        assert_same(left[key], right[key], key)


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_signalled_job_of_two_tasks_ends_as_if_nothing_had_happened(start: Start, tmp_path: Path) -> None:
    """In the same folder, and in the same W&B run."""
    tasks = f"data.num_train={2 * BATCHES}"
    reference = start(
        tasks, "name=whole", "trainer=ddp_spawn", "trainer.accelerator=cpu", "trainer.devices=2"
    )
    assert reference.wait() == 0, reference.printed
    command = start(tasks, "name=stopped", "logger=wandb", "launcher=slurm", "launcher.tasks_per_node=2")
    job = command.wait_for(r"Job (\d+): RUNNING on n1")[1]
    run = only(tmp_path, "outputs/stopped/multirun/*") / "0"
    signal_in_an_epoch(command, {job: run})
    assert command.wait() == 0, command.printed
    assert f"Job {job}: PENDING (BeginTime, back in the queue, restart 1)" in command.lines
    assert command.lines[-1] == f"Job {job}: COMPLETED"
    assert (facts(job)["JobState"], facts(job)["ExitCode"]) == ("COMPLETED", "0:0")
    assert len((run / "resumes.jsonl").read_text().splitlines()) == 1
    assert "devices: 2" in (run / "config.yaml").read_text()
    assert_ended_alike(run, only(tmp_path, "outputs/whole/*"))
    found = Parts(run)
    assert len(found.files) == 2, "one before the signal, one after it, each by the first task alone"
    assert {record["run_id"] for record in found.of("run")} == {(run / "wandb" / "id").read_text().strip()}
    assert [row["_step"] for row in found.rows] == list(range(9, 2 * BATCHES, 10)), "no gap and no overlap"


def test_a_signalled_sweep_ends_as_if_nothing_had_happened(start: Start, tmp_path: Path) -> None:
    sweep = [f"data.num_train={BATCHES}", "seed=1,2"]
    reference = start("--multirun", *sweep, "name=whole")
    assert reference.wait() == 0, reference.printed
    command = start(*sweep, "name=stopped", "launcher=slurm")
    number = command.wait_for(r"Job (\d+)_0: RUNNING")[1]
    runs = only(tmp_path, "outputs/stopped/multirun/*")
    signal_in_an_epoch(command, {f"{number}_{index}": runs / str(index) for index in (0, 1)})
    assert command.wait() == 0, command.printed
    for index in (0, 1):
        name = f"{number}_{index}"
        assert f"Job {name}: PENDING (BeginTime, back in the queue, restart 1)" in command.lines
        assert facts(name)["JobState"] == "COMPLETED"
        assert_ended_alike(runs / str(index), only(tmp_path, f"outputs/whole/multirun/*/{index}"))


@pytest.mark.parametrize("reason", ["time limit", "pre-emption"])
def test_what_slurm_ends_by_itself_comes_back(reason: str, start: Start, tmp_path: Path) -> None:
    """Some time before its limit a job is told to stop, and at once where one of more priority comes."""
    limit = ["launcher.time=2", "launcher.signal_seconds=20"] if reason == "time limit" else []
    # More epochs than a fast machine gets through before the limit.
    command = start("data.num_train=4000", "trainer.max_epochs=100", "launcher=slurm", *limit)
    job = command.wait_for(r"Job (\d+): RUNNING")[1]
    run = only(tmp_path, "outputs/*/multirun/*") / "0"

    def trained() -> int:
        return int(read_checkpoint(last(run))["batches_seen"]) if last(run).is_file() else 0

    until(trained, f"checkpoint in {run}", command)
    if reason == "pre-emption":
        urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"]
        subprocess.run(urgent, cwd=tmp_path, check=True)
    until(lambda: facts(job)["Restarts"] == "1", f"restart of {job}", command)
    saved = trained()
    log = only(tmp_path, f"outputs/*/multirun/*/slurm/{job}_0_log.out")
    signum = "SIGUSR1" if reason == "time limit" else "SIGTERM"
    again = f"i2i-train: stopped by {signum}. SLURM will start this job again, and it will go on from here"
    # The job is back in the queue before it can say so.
    until(lambda: again in log.read_text(), f"{again} in {log}", command)
    until(lambda: trained() > saved, f"further checkpoint in {run}", command)
    assert log.read_text().count(again) == 1
    assert len((run / "resumes.jsonl").read_text().splitlines()) == 1
    command.wait_for(rf"Job {job}: PENDING \(\w+, back in the queue, restart 1\)")


def test_two_nodes_of_two_tasks(start: Start, tmp_path: Path) -> None:
    """The nodes' names do not resolve: SLURM is asked for the address."""
    assert node_address("n1") == "127.0.0.1"
    command = start("data.num_train=8", "launcher=slurm", "launcher.nodes=2", "launcher.tasks_per_node=2")
    job = command.wait_for(r"Job (\d+): submitted")[1]
    assert command.wait() == 0, command.printed
    said = facts(job)
    assert (said["JobState"], said["NodeList"], said["NumTasks"]) == ("COMPLETED", "n[1-2]", "4")
    run = only(tmp_path, "outputs/*/multirun/*") / "0"
    # Eight pictures, one for each of four tasks: two batches in each of two epochs, two steps in each batch.
    assert read_checkpoint(last(run))["global_step"] == 8
    assert len(list((run.parent / "slurm").glob(f"{job}_[0-3]_log.out"))) == 4


def test_a_failing_job(start: Start, tmp_path: Path) -> None:
    command = start("warm_start=nowhere.ckpt", "launcher=slurm")
    job = command.wait_for(r"Job (\d+): submitted")[1]
    assert command.wait() == 1, command.printed
    log = only(tmp_path, f"outputs/*/multirun/*/slurm/{job}_0_log.out")
    assert (facts(job)["JobState"], facts(job)["ExitCode"]) == ("FAILED", "1:0")
    assert f"Job {job}: FAILED, exit status 1: i2i-train: warm_start: nowhere.ckpt" in command.printed
    assert command.lines[-1] == f"its log: {log}"
    assert "i2i-train: warm_start: nowhere.ckpt" in log.read_text()


def test_a_job_that_is_killed_before_it_began(start: Start) -> None:
    command = start("launcher=slurm", "launcher.additional={hold: true}")
    job = command.wait_for(r"Job (\d+): PENDING \(JobHeldUser\)")[1]
    subprocess.run(["scancel", job], check=True)
    assert command.wait() == 1
    assert f"Job {job}: CANCELLED" in command.printed
    assert "its log: " in command.lines[-1]


def test_a_cancelled_job_stays_cancelled(start: Start, tmp_path: Path) -> None:
    """It saves like one that is pre-empted, but it does not come back."""
    command = start("data.num_train=4000", "launcher=slurm")
    job = command.wait_for(r"Job (\d+): RUNNING")[1]
    run = only(tmp_path, "outputs/*/multirun/*") / "0"
    until(lambda: batches_saved(run), f"checkpoint in {run}", command)
    subprocess.run(["scancel", job], check=True)
    assert command.wait() == 1
    assert (facts(job)["JobState"], facts(job)["Restarts"]) == ("CANCELLED", "0")
    log = only(tmp_path, f"outputs/*/multirun/*/slurm/{job}_0_log.out").read_text()
    assert f"SLURM does not start job {job} again: it was cancelled\n" in log
    assert "i2i-train: stopped by SIGTERM. Continue with " in log


def test_srun_by_hand(start: Start, tmp_path: Path) -> None:
    """``srun -n 2``, which Lightning refuses; and numbers that do not fit, in one message for each task."""
    command = ["srun", "-n", "2", sys.executable, "-m", "i2i_lightning.commands.train", *TINY]
    done = subprocess.run(
        [*command, "data.num_train=4", "name=by_hand"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | {"SLURM_JOB_NAME": "by_hand"},
    )
    assert done.returncode == 0, done.stderr
    run = only(tmp_path, "outputs/by_hand/slurm_*")
    assert read_checkpoint(last(run))["global_step"] == 8
    refused = subprocess.run(
        [*command, "trainer.devices=3"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert refused.returncode == 1
    assert "i2i-train: trainer.devices=3: srun started 2 tasks on each node" in refused.stderr
    assert "Traceback" not in refused.stderr
