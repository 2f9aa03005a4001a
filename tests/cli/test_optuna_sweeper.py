"""Studies by Optuna: trials chosen, told and written down; killed and continued; failed and pruned."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from i2i_lightning.callbacks.trial import TrialReport, open_storage
from i2i_lightning.cli.app import App
from i2i_lightning.cli.record import Run
from i2i_lightning.cli.study import JOURNAL
from i2i_lightning.commands import sweep_report
from i2i_lightning.commands.train import APP
from i2i_lightning.sweeps.runs import read_run
from i2i_lightning.types import UserError

STUDY = Path("outputs/toy/studies/mine")
SPACE = ["loss.lambda_l1=tag(log,interval(1,1000))", "loss.gan_mode=choice(lsgan,vanilla)"]
WORDS = ["experiment=pix2pix_toy", "name=toy", "sweep=optuna", "sweep.study=mine", *SPACE]

STAND_IN = """
import math, os, signal, sys
from i2i_lightning.cli.app import App

def task(run):
    number = run.config.sweep.trial
    if os.environ.get("DIES_AT") == str(number):
        os.kill(os.getpid(), signal.SIGKILL)
    value = (math.log10(run.config.loss.lambda_l1) - 1) ** 2
    (run.folder / "metrics.csv").write_text(f"step,epoch,val/l1\\n1,0,{value}\\n")

sys.exit(App("i2i-train", "train", task).main())
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", str(checkout))


def far_from_ten(run: Run) -> None:
    """Stand in for a training whose figure is best at lambda_l1=10."""
    value = (math.log10(run.config.loss.lambda_l1) - 1) ** 2
    (run.folder / "metrics.csv").write_text(f"step,epoch,val/l1\n1,0,{value}\n")


def run_study(*words: str, task: Any = far_from_ten) -> int:
    return App("i2i-train", "train", task).main([*WORDS, *words])


def trials(folder: Path = STUDY) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "study.json").read_text())["trials"]
    return found


def test_a_study_finds_what_is_good_and_says_how_to_repeat_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_study("sweep.trials=9", "sweep.sampler_startup_trials=3", "data.batch_size=4") == 0
    found = trials()
    assert [trial["number"] for trial in found] == list(range(9))
    assert {trial["state"] for trial in found} == {"complete"}
    best = yaml.safe_load((STUDY / "best.yaml").read_text())
    assert best["val/l1"] == min(trial["value"] for trial in found) < 0.3
    assert best["folder"].endswith(f"{STUDY}/{best['trial']}")
    words = shlex.split(best["command"])
    assert words[0] == "i2i-train"
    assert {"experiment=pix2pix_toy", "data.batch_size=4"} <= set(words)
    assert not any(word.startswith("sweep") for word in words)
    again: list[Run] = []
    assert App("i2i-train", "train", again.append).main(words[1:]) == 0
    assert again[0].config.loss.lambda_l1 == best["params"]["loss.lambda_l1"]  # to the last digit
    printed = capsys.readouterr().out
    assert "(the best so far)" in printed
    assert f"Best of 9 trials: {best['trial']}, val/l1" in printed
    assert (STUDY / "multirun.yaml").is_file()
    assert list((STUDY / "workers").iterdir()) == []


def test_the_same_line_again_goes_on_and_repeats_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_study("sweep.trials=2") == run_study("sweep.trials=4") == 0
    assert "Study mine: 2 of 4 trials are there" in capsys.readouterr().out
    parts = [trial["params"] for trial in trials()]
    assert len({tuple(params.values()) for params in parts}) == 4
    assert run_study("sweep.trials=4") == 0
    assert len(trials()) == 4
    # One that was not interrupted finds the same.
    assert run_study("sweep.trials=4", "sweep.study=whole") == 0
    assert [trial["params"] for trial in trials(STUDY.with_name("whole"))] == parts
    assert run_study("sweep.trials=1", "sweep.study=other", "sweep.seed=1") == 0
    assert trials(STUDY.with_name("other"))[0]["params"] != parts[0]


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STAND_IN, *WORDS, *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=100
    )


def test_a_killed_study_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    killed = python("sweep.trials=3", DIES_AT="1")
    assert killed.returncode == -signal.SIGKILL
    assert [trial["state"] for trial in trials()] == ["complete", "running"]
    # A machine that died in the middle of a line.
    with (STUDY / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    assert run_study("sweep.trials=3") == 0
    assert "begun again, because their process was killed: 1" in capsys.readouterr().out
    found = trials()
    assert [trial["state"] for trial in found] == ["complete", "fail", "complete", "complete"]
    assert found[2]["params"] == found[1]["params"]
    assert found[2]["begun_again_for"] == 1
    assert len({tuple(trial["params"].values()) for trial in found}) == 3


def test_a_database_instead_of_the_journal() -> None:
    assert run_study("sweep.trials=2", "sweep.storage=sqlite:///trials.db") == 0
    assert run_study("sweep.trials=3", "sweep.storage=sqlite:///trials.db") == 0
    assert optuna.load_study(study_name="mine", storage="sqlite:///trials.db").trials[2].value is not None
    assert len(trials()) == 3


def test_a_trial_of_a_living_process_is_left_alone() -> None:
    command = [
        sys.executable,
        "-c",
        STAND_IN.replace("os.kill(os.getpid(), signal.SIGKILL)", "signal.pause()"),
    ]
    other = subprocess.Popen([*command, *WORDS, "sweep.trials=2"], env={**os.environ, "DIES_AT": "0"})
    try:
        for _ in range(400):
            if (STUDY / "study.json").is_file() and trials():
                break
            time.sleep(0.1)
        assert run_study("sweep.trials=3") == 0
        assert [trial["state"] for trial in trials()] == ["running", "complete", "complete"]
    finally:
        other.kill()
        other.wait()


def test_a_trial_that_raises_is_one_failed_trial(capsys: pytest.CaptureFixture[str]) -> None:
    def task(run: Run) -> None:
        if run.config.sweep.trial == 1:
            raise UserError("no room left")
        if run.config.sweep.trial == 2:
            raise ZeroDivisionError("a bug")
        if run.config.sweep.trial != 3:  # which writes nothing
            far_from_ten(run)

    assert run_study("sweep.trials=5", task=task) == 0
    found = trials()
    assert [trial["state"] for trial in found] == ["complete"] + ["fail"] * 3 + ["complete"]
    reasons = [trial["reason"] for trial in found[1:4]]
    assert reasons[:2] == ["no room left", "ZeroDivisionError: a bug"]
    assert reasons[2] == "the run wrote no val/l1; there is: none"
    assert json.loads((STUDY / "1" / "failure.json").read_text())["error"] == "no room left"
    assert "Failed trials: 1, 2, 3" in capsys.readouterr().out

    def fails(run: Run) -> None:
        raise UserError("no room left")

    assert run_study("sweep.trials=2", "sweep.study=bad", task=fails) == 1
    assert "every trial failed; the last one: no room left" in capsys.readouterr().err


def test_several_at_once() -> None:
    assert run_study("sweep.trials=3", "sweep.at_once=2") == 0
    assert [trial["number"] for trial in trials()] == list(range(3))
    assert all((STUDY / str(number) / "metrics.csv").is_file() for number in range(3))


@pytest.mark.parametrize(
    ("word", "kind", "ends"),
    [
        ("loss.lambda_l1=interval(1,10)", optuna.distributions.FloatDistribution, (1.0, 10.0, False)),
        ("loss.lambda_l1=tag(log,interval(1,10))", optuna.distributions.FloatDistribution, (1.0, 10.0, True)),
        ("data.batch_size=int(interval(1,8))", optuna.distributions.IntDistribution, (1, 8, False)),
        ("data.batch_size=range(1,10,3)", optuna.distributions.IntDistribution, (1, 7, False)),
    ],
)
def test_spaces(word: str, kind: Any, ends: Any) -> None:
    assert App("i2i-train", "train", far_from_ten).main([*WORDS[:4], word, "sweep.trials=1"]) == 0
    (trial,) = optuna.load_study(study_name="mine", storage=open_storage(str(STUDY / JOURNAL))).trials
    (found,) = trial.distributions.values()
    assert isinstance(found, kind)
    assert (found.low, found.high, found.log) == ends


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.trials=0"], "sweep.trials=0: give at least 1"),
        (["sweep.trials=some"], "sweep.trials='some': give a whole number"),
        (["sweep.sampler=grid"], "sweep.sampler=grid: give tpe or random"),
        (["sweep.monitor=val/mood"], "sweep.monitor=val/mood: nobody knows which way is better"),
        (["sweep.monitor=sharpness"], "sweep.monitor=sharpness: nobody knows which way is better"),
        (["sweep.direction=up"], "sweep.direction=up: give minimize or maximize"),
        (["sweep.storage=sqlite:////no/such/folder/x.db"], "sweep.storage=sqlite:////no/such/folder/x.db"),
        (["loss.lambda_l1=interval(10,1)"], "loss.lambda_l1: not a range of numbers to search"),
        (["generator=choice(unet,none_such)", "sweep.sampler_startup_trials=1"], "generator=none_such"),
        (["sweep.trails=3", "-m"], "sweep.trails: no such key. Did you mean sweep.trials?"),
    ],
)
def test_slips(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_study("sweep.trials=6", *words) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep.monitor=val/psnr", "give sweep.study another name"),
        ("sweep.monitor=val/lpips_alex", "study mine is about val/l1; give sweep.study another name"),
        ("loss.gan_mode=choice(lsgan,hinge)", "not those that trial 0 of study mine was drawn from"),
        ("sweep.direction=maximize", "would look for the worst val/l1: give minimize"),
        ("sweep.monitor=train/generator/l1", "give what validation measures"),
    ],
)
def test_another_question_is_another_study(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_study("sweep.trials=1") == 0
    assert run_study("sweep.trials=2", word) == 1
    assert message in capsys.readouterr().err
    assert [trial["state"] for trial in trials()] == ["complete"]


def test_jobs_of_slurm_outlive_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is still in the queue, and one has ended since: neither is begun again."""
    assert python("sweep.trials=3", DIES_AT="1").returncode == -signal.SIGKILL
    with monkeypatch.context() as patch:
        patch.setattr("i2i_lightning.cli.study.is_under_way", lambda sweep, run: run == sweep / "1")
        assert run_study("sweep.trials=3") == 0
    assert "still under way, and told when the study is next continued: 1" in capsys.readouterr().out
    assert [trial["state"] for trial in trials()] == ["complete", "running", "complete"]
    run = STUDY / "1"
    run.mkdir(exist_ok=True)
    (run / "metrics.csv").write_text("step,epoch,val/l1\n1,0,0.125\n")
    (run / "finished.json").write_text("{}")
    assert run_study("sweep.trials=3") == 0
    assert [trial["state"] for trial in trials()] == ["complete"] * 3
    assert trials()[1]["value"] == 0.125


def test_without_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert App("i2i-train", "train", far_from_ten).main(WORDS[:4]) == 1
    assert "nothing to choose" in capsys.readouterr().err


def test_a_vain_trial_is_told_to_stop(tmp_path: Path) -> None:
    """The callback alone: what it reports, and when it lets a run go on."""
    from types import SimpleNamespace

    journal = str(tmp_path / JOURNAL)
    study = optuna.create_study(study_name="s", storage=open_storage(journal), direction="minimize")
    for level in (1.0, 2.0, 3.0):
        trial = study.ask()
        for epoch in (1, 2, 3):
            trial.report(level, epoch)
        study.tell(trial, level)
    study.ask()
    report = TrialReport(journal, "s", 3, "val/l1", pruner_startup_trials=3, pruner_warmup_epochs=1)
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        world_size=1,
        callback_metrics={},
        max_epochs=4,
        should_stop=False,
        is_last_batch=True,
        current_epoch=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_should_check_val_epoch=lambda: True)),
    )
    module: Any = None
    report.on_fit_start(trainer, module)
    stops = []
    for epoch, value in enumerate((9.0, 9.0)):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val/l1": value}
        report.on_train_epoch_end(trainer, module)
        stops.append(trainer.should_stop)
    assert stops == [False, True]
    told = optuna.load_study(study_name="s", storage=open_storage(journal)).trials[3]
    assert told.intermediate_values == {1: 9.0, 2: 9.0}
    assert told.user_attrs == {"pruned_after_epoch": 2}
    trainer.callback_metrics = {"val/psnr": 9.0}
    with pytest.raises(UserError, match=r"sweep\.monitor=val/l1: nothing logs this metric; .*val/psnr"):
        report.on_train_epoch_end(trainer, module)
    with pytest.raises(UserError, match=r"sweep.pruner=some: give median, halving or null"):
        TrialReport(journal, "s", 3, "val/l1", pruner="some")


SMALL = [
    "data.num_train=8",
    "data.num_val=4",
    "data.num_test=4",
    "data.crop_px=32",
    "data.batch_size=4",
    "generator.base_channels=4",
    "discriminator.base_channels=4",
    "discriminator.num_layers=1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
]


@pytest.mark.slow
def test_a_study_killed_in_the_middle_of_a_training_goes_on() -> None:
    """The second of three real trainings is killed while it trains; the same command line does the rest."""
    words = ["experiment=pix2pix_toy", "name=toy", "sweep=optuna", "sweep.study=mine", "sweep.trials=3"]
    words += [*SMALL, *SPACE, "sweep.pruner=null", "trainer.max_epochs=2"]
    command = [sys.executable, "-m", "i2i_lightning.commands.train", *words]
    process = subprocess.Popen(command)
    try:
        # There after its first epoch of two.
        begun = STUDY / "1" / "checkpoints" / "last.ckpt"
        for _ in range(1200):
            if begun.is_file() or process.poll() is not None:
                break
            time.sleep(0.05)
        assert begun.is_file()
    finally:
        process.kill()
        process.wait()
    assert [trial["state"] for trial in trials()] == ["complete", "running"]
    first = (STUDY / "0" / "metrics.csv").read_bytes()
    assert subprocess.run(command, timeout=250, check=False).returncode == 0
    found = trials()
    assert [trial["state"] for trial in found] == ["complete", "fail", "complete", "complete"]
    assert found[2]["params"] == found[1]["params"]
    assert (STUDY / "0" / "metrics.csv").read_bytes() == first, "what was done is not done again"
    for number in (0, 2, 3):
        assert read_run(STUDY / str(number), STUDY).state == "finished"
        assert found[number]["value"] == read_run(STUDY / str(number), STUDY).metrics["val/l1"]
    sweep_report.write(STUDY)
    with (STUDY / "runs.csv").open(newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states == ["finished", "stopped", "finished", "finished"]


@pytest.mark.slow
def test_real_trials_are_pruned_and_leave_whole_runs(capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, "trainer.max_epochs=4"]
    prunes = ["sweep.pruner_startup_trials=1", "sweep.pruner_warmup_epochs=1", "sweep.sampler=random"]
    words = ["experiment=pix2pix_toy", "name=toy", "sweep=optuna", "sweep.study=mine", "sweep.trials=4"]
    # A rate of 0 never learns.
    space = "optimizer.lr=choice(0.0,0.005)"
    assert APP.main([*words, *small, *prunes, space, "sweep.seed=3"]) == 0
    found = {trial["number"]: trial for trial in trials()}
    states = [trial["state"] for trial in found.values()]
    assert set(states) == {"complete", "pruned"}
    number = states.index("pruned")
    assert found[number]["params"] == {"optimizer.lr": "0.0"}
    assert (STUDY / str(number) / "checkpoints" / "last.ckpt").is_file()
    assert (STUDY / str(number) / "report.json").is_file()
    assert not (STUDY / str(number) / "finished.json").exists()
    assert len((STUDY / str(number) / "metrics.csv").read_text().splitlines()) < 5
