"""Asking SLURM to start a job again, with a stand-in for scontrol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from i2i_lightning.strategies import requeue

Scontrol = Callable[..., Path]


@pytest.fixture(autouse=True)
def batch_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", requeue.REQUEST_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    """Put a scontrol on the path that knows one job, and writes down what it is asked."""

    def install(facts: str = "JobId=12 JobState=RUNNING BatchFlag=1", status: int = 0) -> Path:
        asked = tmp_path / "asked.txt"
        asked.touch()
        program = tmp_path / "scontrol"
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >>"{asked}"\n'
            f'if [ "$1" = show ]; then echo "{facts}"; exit; fi\n'
            f"if [ {status} != 0 ]; then echo 'Requested operation is presently disabled' >&2; fi\n"
            f"exit {status}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return asked

    return install


def test_requeues_the_job(scontrol: Scontrol, capsys: pytest.CaptureFixture[str]) -> None:
    asked = scontrol()
    assert requeue.requeue()
    assert asked.read_text().splitlines()[-1] == "requeue 12"
    assert capsys.readouterr().err == ""


def test_requeues_one_element_of_an_array(scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last element bears the array's own number: by that SLURM would requeue all of them."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    asked = scontrol()
    assert requeue.requeue()
    assert asked.read_text().splitlines()[-1] == "requeue 12_3"


SIGNALLED_WHILE_IT_IMPORTS = """
import importlib.abc, os, signal, sys

class InTheMidst(importlib.abc.MetaPathFinder):
    came = False

    def find_spec(self, name, path, target=None):
        if name == "torch" and self.came:
            raise ImportError("torch cannot be imported again")
        if name == "torch._utils" and not self.came:
            self.came = True
            os.kill(os.getpid(), signal.SIGUSR1)

sys.meta_path.insert(0, InTheMidst())
from i2i_lightning.commands.train import APP
sys.exit(APP.main(["data.crop_px=32", "hydra.run.dir=run", "resume=auto"]))
"""


def test_a_signal_while_torch_is_imported(scontrol: Scontrol, tmp_path: Path, checkout: Path) -> None:
    """A short time limit, or a slow disk: the stop itself must not need what is there by half."""
    asked = scontrol()
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_WHILE_IT_IMPORTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    again = "i2i-train: stopped by SIGUSR1. SLURM will start this job again, and it will go on from here"
    assert done.stderr.split("\n") == ["", again, ""]
    assert asked.read_text().splitlines()[-1] == "requeue 12"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ("JobId=12 JobState=CANCELLED Reason=None BatchFlag=1", "it was cancelled"),
        ("JobId=12 JobState=COMPLETING Reason=None PreemptTime=None BatchFlag=1", "it was cancelled"),
        ("JobId=12 JobState=RUNNING BatchFlag=0", "no batch job"),
    ],
)
def test_what_is_not_to_come_back(
    facts: str, reason: str, scontrol: Scontrol, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = scontrol(facts)
    assert not requeue.requeue()
    assert "requeue" not in asked.read_text()
    said = capsys.readouterr().err
    assert said.startswith("SLURM does not start job 12 again: ")
    assert reason in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "facts", ["Reason=TimeLimit PreemptTime=None", "Reason=None PreemptTime=2026-01-31T12:00:00"]
)
def test_what_slurm_ends_may_come_back(facts: str, scontrol: Scontrol) -> None:
    asked = scontrol(f"JobId=12 JobState=COMPLETING Restarts=0 {facts} BatchFlag=1")
    assert requeue.requeue()
    assert asked.read_text().splitlines()[-1] == "requeue 12"


def test_what_is_in_the_queue_already(scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pre-emption, or by hand."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    asked = scontrol("JobId=12 JobState=COMPLETING Restarts=2 Reason=None BatchFlag=1")
    assert requeue.requeue()
    assert "requeue" not in asked.read_text()


def test_says_so_when_slurm_refuses(scontrol: Scontrol, capsys: pytest.CaptureFixture[str]) -> None:
    scontrol(status=1)
    assert not requeue.requeue()
    said = "SLURM does not start job 12 again: Requested operation is presently disabled\n"
    assert capsys.readouterr().err == said


def test_without_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a container the batch script outside is asked, by a file."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue.requeue()
    assert "there is no scontrol here" in capsys.readouterr().err
    request = tmp_path / "request"
    monkeypatch.setenv(requeue.REQUEST_FILE, str(request))
    assert requeue.requeue()
    assert request.is_file()


def test_outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not requeue.in_slurm()
    assert not requeue.requeue()
    assert requeue.restart_count() == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeue.restart_count() == 2
