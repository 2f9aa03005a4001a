"""``resume=`` on the command line: what is continued, what is refused, and what a run falls back to."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Callback, Trainer
from PIL import Image

from i2i_lightning import config
from i2i_lightning.checkpoints import seal
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.cli import lock, record
from i2i_lightning.cli.lock import RunLock
from i2i_lightning.commands import fitting as command
from i2i_lightning.commands.train import APP
from i2i_lightning.types import UserError
from tests.methods.test_resume import assert_same

PAIRED = ["data=paired", "data.root=pairs", "data.load_px=40"]
SMALL = [
    "data.crop_px=32",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "generator.base_channels=2",
    "discriminator.base_channels=2",
    "discriminator.num_layers=1",
    "callbacks.gallery=null",
    "callbacks.previews=null",
    "callbacks.health=null",
]
TINY = [*PAIRED, *SMALL]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
SPAWN = ["trainer=ddp_spawn", *TWO[1:]]
CYCLE = [
    "method=cyclegan",
    "data=toyfaces_unpaired",
    "data.num_train_a=6",
    "data.num_train_b=7",
    "data.num_val=2",
    "data.num_test=1",
    "generator=resnet_6",
    "generator.num_blocks=1",
    "method.pool_size=3",
]
COMMAND = [sys.executable, "-m", "i2i_lightning.commands.train"]
CLUSTER = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


@pytest.fixture(autouse=True)
def in_a_folder_with_pairs(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")  # see _stacks
    for name in (*CLUSTER, "I2I_DEBUG", "TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        Path("pairs", split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("pairs", split, f"{index}.png"))


def train(*words: str, expect: int = 0) -> None:
    assert APP.main([*TINY, *words]) == expect


def elsewhere(code: str) -> str:
    """Run ``code`` in a process of its own; return what it prints."""
    code = f"from pathlib import Path; from i2i_lightning.cli import record; {code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def last(folder: str | Path = "run") -> dict[str, Any]:
    return read_checkpoint(Path(folder, "checkpoints", "last.ckpt"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Which run.


def test_auto_in_a_given_folder(capsys: pytest.CaptureFixture[str]) -> None:
    train("hydra.run.dir=run", "resume=auto")
    assert not Path("run", "resumes.jsonl").exists()
    assert (Path("run", "config.yaml").read_text()).count("resume: null") == 1
    began = Path("run", ".hydra", "overrides.yaml").read_text()
    train("hydra.run.dir=run", "resume=auto")
    assert "run: all 1 epochs are trained already" in capsys.readouterr().out
    train("hydra.run.dir=run", "resume=auto", "trainer.max_epochs=2")
    assert last()["epoch"] == 1
    train("hydra.run.dir=run", "resume=auto", "trainer.max_epochs=2", "launcher=local")
    assert "run: all 2 epochs are trained already" in capsys.readouterr().out
    lines = Path("run", "resumes.jsonl").read_text().splitlines()
    assert [json.loads(line)["overrides"] for line in lines] == [["trainer.max_epochs=2"]]
    assert Path("run", ".hydra", "overrides.yaml").read_text() == began
    train("hydra.run.dir=run", "resume=auto", "generator=resnet_6", expect=1)
    assert "generator=resnet_6: the run in run was not started with this" in capsys.readouterr().err
    train("hydra.run.dir=run", expect=1)
    assert "run holds a run already. Continue with resume=run" in capsys.readouterr().err


def test_auto_without_a_folder_finds_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    def folders() -> set[Path]:
        return set(Path("outputs", "auto").iterdir())

    train("name=auto")
    train("name=auto", "seed=3")
    finished = folders()
    assert len(finished) == 2
    time.sleep(1)  # runs are named by the second
    train("name=auto", "resume=auto")
    (third,) = folders() - finished
    assert last(third)["epoch"] == 0, "the first two are finished, or something else"
    (third / "finished.json").unlink()
    held = RunLock(third)
    held.acquire()
    # The lock belongs to a process: only another one meets it.
    assert (
        elsewhere(f"print(record.unfinished_run(Path({str(third.parent)!r}), {[*TINY, 'name=auto']!r}))")
        == "None"
    )
    held.release()
    capsys.readouterr()
    train("resume=auto", "name=auto")
    assert len(folders()) == 3
    assert "All 1 epochs are trained already" in capsys.readouterr().out
    assert record.finished_epochs(third) == 1


def test_before_the_first_checkpoint_a_run_begins_again(capsys: pytest.CaptureFixture[str]) -> None:
    train("hydra.run.dir=run")
    whole = last()
    for path in Path("run", "checkpoints").iterdir():
        path.unlink()
    began = Path("run", ".hydra", "config.yaml").read_bytes()
    Path("run", ".metrics.csv.1.tmp").touch()
    assert APP.main(["resume=run"]) == 0
    assert "run was stopped before its first checkpoint: it begins again" in capsys.readouterr().out
    assert_same(whole["state_dict"], last()["state_dict"])
    assert Path("run", ".hydra", "config.yaml").read_bytes() == began
    assert not Path("run", ".metrics.csv.1.tmp").exists()
    for path in Path("run", "checkpoints").iterdir():
        path.unlink()
    train("hydra.run.dir=run", "resume=auto")
    assert_same(whole["state_dict"], last()["state_dict"])
    # Not even the records were written.
    Path("early").mkdir()
    Path("early", "config.yaml").write_text("")
    train("hydra.run.dir=early", "resume=auto")
    assert_same(whole["state_dict"], last("early")["state_dict"])


def test_auto_does_not_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    train("resume=auto", "--multirun", "seed=1,2", expect=1)
    assert "resume: continues one run; leave out --multirun" in capsys.readouterr().err


def test_processes_that_are_started_one_by_one_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.launch_name() is None
    assert config.run_stamp("now") == "now"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert config.launch_name() is None, "a shell in an allocation"
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert config.run_stamp("now") == "slurm_17"
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert config.launch_name() is None
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert config.launch_name() == "slurm_15_2"
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert config.launch_name() == f"torchrun_{os.getppid()}"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"give hydra\.run\.dir="):
        config.launch_name()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert config.launch_name() == "torchrun_mine"


def test_a_job_of_a_cluster_goes_on_in_its_own_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from i2i_lightning.cli.app import App

    seen: list[record.Run] = []
    app = App("i2i-train", "train", seen.append)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_PROCID", "0")
    for _ in range(2):
        assert app.main([*TINY, "resume=auto", "name=job"]) == 0
        assert seen[-1].folder == Path("outputs/job/slurm_17").absolute()
        assert seen[-1].checkpoint is None
        record.start(seen[-1])  # killed before its first checkpoint
    assert seen[-1].again


# What a run goes on from.


def test_a_damaged_checkpoint_falls_back(capsys: pytest.CaptureFixture[str]) -> None:
    train("hydra.run.dir=run", "trainer.max_epochs=3")
    whole, folder = last(), Path("run", "checkpoints")
    newest = folder / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])  # what a power loss may leave
    assert APP.main(["resume=run"]) == 0
    told = capsys.readouterr().err
    assert "damaged: run/checkpoints/last.ckpt (its end is missing or damaged); continuing from" in told
    assert "continuing from run/checkpoints/last_1.ckpt" in told
    assert_same(whole["state_dict"], last()["state_dict"])
    assert_same(whole["optimizer_states"], last()["optimizer_states"])
    assert {path.name for path in folder.glob("last*")} == {"last.ckpt", "last_1.ckpt", "last.ckpt.damaged"}

    damage(newest)
    assert APP.main([f"resume={newest}"]) == 1, "a file that is named is meant"
    assert "not a whole checkpoint file (its content is not what was written" in capsys.readouterr().err
    damage(folder / "last_1.ckpt")
    assert APP.main(["resume=run"]) == 1
    told = capsys.readouterr().err
    assert "run: no checkpoint of this run is whole: last.ckpt (" in told
    assert len(told.splitlines()) <= 3


def test_a_checkpoint_that_cannot_be_read_falls_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train("hydra.run.dir=run", "trainer.max_epochs=3")
    whole, look = last(), seal.what_is_wrong

    def bad_sector(path: Path) -> str | None:
        if path.name == "last.ckpt":
            raise OSError(errno.EIO, "Input/output error")
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(seal, "what_is_wrong", bad_sector)
        assert APP.main(["resume=run"]) == 0
    told = capsys.readouterr().err
    assert "last.ckpt (it cannot be read: Input/output error); continuing from run/checkpoints/last_1" in told
    assert_same(whole["state_dict"], last()["state_dict"])


def test_a_last_epoch_that_is_broken_off_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """``trainer.max_time`` may end there, and Lightning counts that epoch as completed."""

    class TimeIsUp(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    train("hydra.run.dir=whole", "trainer.max_epochs=2")
    entries = command.entries
    with monkeypatch.context() as patch:
        patch.setattr(command, "entries", lambda group: [TimeIsUp()] * ("finite" in group) + entries(group))
        train("hydra.run.dir=run", "trainer.max_epochs=2")
    assert 0 < last()["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] < 3
    assert not Path("run", "finished.json").exists()
    train("hydra.run.dir=run", "trainer.max_epochs=2", "resume=auto")
    assert Path("run", "finished.json").exists()
    assert_same(last("whole")["state_dict"], last()["state_dict"])


def test_the_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("hydra.run.dir=run")
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)
    hold = (
        "from pathlib import Path; import sys, time; from i2i_lightning.cli.lock import RunLock; "
        "lock = RunLock(Path('run')); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert lock.is_running(Path("run"))
    for words in (["resume=run"], [*TINY, "hydra.run.dir=run", "resume=auto"]):
        assert APP.main(words) == 1
        told = capsys.readouterr().err
        assert f"another process trains this run (process {other.pid} on " in told
        assert len(told.splitlines()) == 1
    other.kill()
    other.wait()
    assert not lock.is_running(Path("run"))
    assert APP.main(["resume=run", "trainer.max_epochs=2"]) == 0
    assert last()["epoch"] == 1


def test_asking_leaves_the_lock_alone(tmp_path: Path) -> None:
    """Others who ask are not taken for the run, nor does asking write into its folder."""
    assert not lock.is_running(tmp_path)
    assert not (tmp_path / lock.NAME).exists()
    (tmp_path / lock.NAME).write_text("process 1 on a")
    asks = (
        "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.lockf(file, fcntl.LOCK_SH); "
        "print('asks', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", asks, str(tmp_path / lock.NAME)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "asks\n"
    assert not lock.is_running(tmp_path)
    other.kill()
    other.wait()
    assert (tmp_path / lock.NAME).read_text() == "process 1 on a"


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    held = RunLock(tmp_path)
    held.acquire()
    ready, go = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.read(ready, 1)
        os._exit(0)
    held.release()
    elsewhere(f"record.RunLock(Path({str(tmp_path)!r})).acquire(0)")
    os.write(go, b"x")
    os.waitpid(worker, 0)


# Signals, and their absence.


def start(words: Sequence[str]) -> subprocess.Popen[str]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*COMMAND, *([] if "method=cyclegan" in words else PAIRED), *SMALL, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def rows(folder: str) -> list[dict[str, str]]:
    path = Path(folder, "metrics.csv")
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{name: cell for name, cell in row.items() if not name.startswith("perf/")} for row in found]


def wait_for(folder: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while len(rows(folder)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ends(process: subprocess.Popen[str], status: int, says: str = "") -> None:
    try:
        _, errors = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after 400 s:\n{_stacks(process)}")
    assert process.returncode == status, errors
    assert says in errors
    if status != -signal.SIGKILL:  # a worker, killed a moment later, may find its parent gone
        assert "Traceback" not in errors, errors


def assert_equal_runs(folder: str, whole: str) -> None:
    found, expected = last(folder), last(whole)
    for part in (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "batches_seen",
        "epoch",
        "global_step",
        "random_state",
        "random_states_of_others",
        "image_pools",
    ):
        assert_same(expected.get(part), found.get(part), part)
    assert rows(folder) == rows(whole)
    assert not list(Path(folder).rglob(".*.tmp"))
    assert record.finished_epochs(Path(folder)) == found["epoch"] + 1


LONG = [
    "trainer.max_epochs=20",
    "callbacks.checkpoints.every_n_batches=4",
    "trainer.check_val_every_n_epoch=5",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "status", "says"),
    [
        (signal.SIGTERM, 143, "i2i-train: stopped by SIGTERM. Continue with resume=run"),
        (signal.SIGINT, 130, "i2i-train: stopped. Continue with resume=run"),
        (signal.SIGUSR1, 138, "i2i-train: stopped by SIGUSR1. Continue with resume=run"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_one_process_goes_on_bit_for_bit(signum: int, status: int, says: str) -> None:
    train(*LONG, "hydra.run.dir=whole")
    for count in (14, 61):
        words = [*LONG, "hydra.run.dir=run", "resume=auto", "data.num_workers=1"]
        process = start(words)
        wait_for("run", count, process)
        os.killpg(process.pid, signum)
        ends(process, status, says)
    train(*LONG, "hydra.run.dir=run", "resume=auto")
    assert_equal_runs("run", "whole")


@pytest.mark.ddp
@pytest.mark.parametrize("method", [[], CYCLE], ids=["pix2pix", "cyclegan"])
@pytest.mark.parametrize(
    ("signum", "whom", "status"),
    [
        (signal.SIGTERM, "first", 143),
        (signal.SIGTERM, "second", 143),
        (signal.SIGINT, "all", 130),
        (signal.SIGKILL, "first", -9),
        (signal.SIGKILL, "second", 1),
    ],
)
def test_two_processes_go_on_bit_for_bit(
    method: list[str], signum: int, whom: str, status: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = [*method, *TWO, *LONG, "trainer.max_epochs=12"]
    whole = tmp_path_factory.getbasetemp() / ("whole_cyclegan" if method else "whole_pix2pix")
    if not (whole / "finished").exists():  # the same one for every signal
        shutil.rmtree(whole, ignore_errors=True)
        ends(start([*words, f"hydra.run.dir={whole}"]), 0)
        (whole / "finished").touch()
    process = start([*words, "hydra.run.dir=run", "resume=auto", "data.num_workers=1"])
    wait_for("run", 14, process)
    second = next(
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and _is_second(path, process.pid)
    )
    began = time.monotonic()
    if whom == "all":
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid if whom == "first" else second, signum)
    ends(process, status)
    while _command(second):
        time.sleep(0.1)
        assert time.monotonic() - began < 60, "the other process is still there"
    ends(start([*words, "hydra.run.dir=run", "resume=auto"]), 0)
    assert_equal_runs("run", str(whole))
    states = [last()["random_state"], *last()["random_states_of_others"]]
    assert len(states) == 2
    assert not np.array_equal(states[0]["torch"].numpy(), states[1]["torch"].numpy())


@pytest.mark.ddp
def test_spawned_processes_go_on_bit_for_bit() -> None:
    """``trainer=ddp_spawn``: the process that was started trains nothing itself, and passes signals on."""
    words = [*SPAWN, *LONG, "trainer.max_epochs=12"]
    ends(start([*words, "hydra.run.dir=whole"]), 0)
    died = "process 1 of this run died (SIGKILL); the others end too, and the last checkpoint is kept"
    for count, signum, whom, status, says in (
        (8, signal.SIGTERM, "parent", 143, "i2i-train: stopped by SIGTERM. Continue with resume=run"),
        (16, signal.SIGKILL, "rank 1", 1, died),
        (24, signal.SIGKILL, "parent", -9, ""),
    ):
        process = start([*words, "hydra.run.dir=run", "resume=auto", "data.num_workers=1"])
        wait_for("run", count, process)
        ranks = _spawned_by(process.pid)
        assert len(ranks) == 2
        began = time.monotonic()
        os.kill(process.pid if whom == "parent" else ranks[1], signum)
        ends(process, status, says)
        while any(_words_of(rank) for rank in ranks):  # a process that has ended has none
            time.sleep(0.1)
            assert time.monotonic() - began < 60, "a rank is still there"
    ends(start([*words, "hydra.run.dir=run", "resume=auto"]), 0)
    assert_equal_runs("run", "whole")


def _stacks(process: subprocess.Popen[str]) -> str:
    """End a run that hangs, and return where each of its processes was."""
    there = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int(path.joinpath("stat").read_text().rpartition(")")[2].split()[3]) == process.pid:
                there.append(int(path.name))
                os.kill(there[-1], signal.SIGSTOP)  # none is to end because another has ended
    for pid in sorted(there):
        os.kill(pid, signal.SIGABRT)  # faulthandler writes the stacks of all threads
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.2)
    said, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if not line.startswith("Extension modules")]
    return "\n".join([said, *lines])


def _spawned_by(parent: int) -> list[int]:
    """Return the processes that ``parent`` spawned to train, in the order of their ranks."""
    children = Path("/proc", str(parent), "task", str(parent), "children").read_text().split()
    return sorted(int(child) for child in children if b"spawn_main" in _words_of(int(child)))


def _words_of(process: int) -> bytes:
    try:
        return Path("/proc", str(process), "cmdline").read_bytes()
    except OSError:
        return b""


def _command(process: int) -> str:
    text = _words_of(process).replace(b"\0", b" ").decode()
    return text if "i2i_lightning.commands.train" in text else ""


def _is_second(path: Path, first: int) -> bool:
    try:
        parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return False
    return parent == first and "hydra.job.name=train_ddp_process_1" in _command(int(path.name))


@pytest.mark.ddp
def test_another_number_of_processes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ends(start([*TWO, "hydra.run.dir=run"]), 0)
    assert APP.main(["resume=run", "trainer.max_epochs=2", "trainer.devices=1", "trainer.strategy=auto"]) == 0
    assert last()["random_states_of_others"] == []


def test_a_lock_of_another_machine_is_said(tmp_path: Path) -> None:
    held = RunLock(tmp_path)
    held.acquire()
    assert (tmp_path / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")
    held.release()
    with pytest.raises(UserError, match="no such folder"):
        record.find_run("nowhere")
