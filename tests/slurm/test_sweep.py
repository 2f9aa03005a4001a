"""An ablation as a job array with its report, and a study whose trials are jobs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from i2i_lightning.commands import sweep_report

pytestmark = pytest.mark.slurm

SMALL = [
    "experiment=pix2pix_toy",
    "data.crop_px=32",
    "data.num_train=8",
    "data.num_val=4",
    "data.num_test=4",
    "data.batch_size=4",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "generator.base_channels=2",
    "discriminator.base_channels=2",
    "discriminator.num_layers=1",
    "launcher=slurm",
]


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-u", "-m", "i2i_lightning.commands.train", *SMALL, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("slurm")
def test_an_ablation_as_an_array_has_its_report(tmp_path: Path) -> None:
    done = train(tmp_path, "sweep=pix2pix_losses", "variant=l1,l1+cgan", "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "sweep"
    sweep_report.write(sweep)
    variants = rows(sweep / "report.csv")
    assert sorted(row["label"] for row in variants) == ["l1", "l1+cgan"]
    for row in variants:
        assert (row["seeds"], row["state"]) == ("1, 2", "finished")
        assert float(row["judge_iou_std"]) >= 0
    page = (sweep / "report.html").read_text()
    assert page.count("<a href='") == 4
    assert "film strip" in page


@pytest.mark.usefixtures("slurm")
def test_trials_are_jobs_and_one_that_fails_is_one_failed_trial(tmp_path: Path) -> None:
    words = ["sweep=optuna", "sweep.study=mine", "sweep.trials=4", "sweep.at_once=2", "sweep.sampler=random"]
    space = ["loss.lambda_l1=interval(1,9)", "loss.lambda_gan=choice(1,-1)"]
    done = train(tmp_path, *words, *space)
    assert done.returncode == 0, done.stdout + done.stderr
    study = tmp_path / "outputs/pix2pix_toy/studies/mine"
    trials = json.loads((study / "study.json").read_text())["trials"]
    failed = {trial["number"] for trial in trials if trial["params"]["loss.lambda_gan"] == "-1"}
    assert 0 < len(failed) < 4
    assert {trial["number"] for trial in trials if trial["state"] == "fail"} == failed
    assert all("loss.lambda_gan=-1" in trial["reason"] for trial in trials if trial["number"] in failed)
    sweep_report.write(study)
    states = {int(row["run"]): row["state"] for row in rows(study / "runs.csv")}
    assert states == {number: "failed" if number in failed else "finished" for number in range(4)}
