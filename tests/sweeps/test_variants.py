from __future__ import annotations

import doctest
import json
import statistics
from pathlib import Path

import pytest
import yaml

import i2i_lightning.sweeps.variants as variants
import i2i_lightning.sweeps.words as words
from i2i_lightning.cli.planned import planned_jobs
from i2i_lightning.commands import sweep_report
from i2i_lightning.sweeps.page import page
from i2i_lightning.sweeps.variants import Sweep, read_sweep
from i2i_lightning.types import UserError

from .conftest import MakeRun, report


def labels(sweep: Sweep) -> list[str]:
    return [variant.label for variant in sweep.variants]


def test_seeds_belong_together_and_the_best_is_first(make_run: MakeRun, tmp_path: Path) -> None:
    ious = {("l1", 1): 0.5, ("l1", 2): 0.6, ("l1+cgan", 1): 0.7, ("l1+cgan", 2): 0.75}
    for number, ((variant, seed), iou) in enumerate(ious.items()):
        own = [f"variant={variant}", "experiment=toy", f"seed={seed}"]
        make_run(str(number), *own, figures=report(iou, 0.5, 20.0))
    sweep = read_sweep(tmp_path / "sweep")
    assert (sweep.keys, sweep.ranked_by) == (["variant"], "judge_iou")
    assert labels(sweep) == ["l1+cgan", "l1"]
    best = sweep.variants[0]
    assert best.mean("judge_iou") == pytest.approx(0.725)
    assert best.deviation("judge_iou") == pytest.approx(statistics.stdev([0.7, 0.75]))
    assert (best.seeds, best.state, best.rank, best.number) == ("1, 2", "finished", 1, 1)
    assert [v.label for v in sweep.in_order] == ["l1", "l1+cgan"]
    assert read_sweep(tmp_path / "sweep", "val/l1").ranked_by == "val/l1"
    with pytest.raises(UserError, match="--by val/psnr"):
        read_sweep(tmp_path / "sweep", "val/psnr")


def test_what_is_near_one_is_best(make_run: MakeRun, tmp_path: Path) -> None:
    for number, sharpness in enumerate((0.4, 0.9, 1.3)):
        make_run(str(number), f"loss.lambda_l1={10**number}", figures=report(0.5, sharpness, 20.0))
    sweep = read_sweep(tmp_path / "sweep", "sharpness")
    assert labels(sweep) == ["lambda_l1 10", "lambda_l1 100", "lambda_l1 1"]
    assert sweep.best("sharpness") == 0.9
    assert all(variant.deviation("sharpness") is None for variant in sweep.variants)


def test_partial_runs_do_not_enter_a_mean(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("0", "variant=a", "seed=1", values=(0.5, 0.4))
    make_run("1", "variant=a", "seed=2", values=(0.9,), epochs=2, finished=False)
    make_run("2", "variant=b", "seed=1", values=(0.3,), epochs=2, finished=False)
    failed = tmp_path / "sweep" / "3"
    failed.mkdir()
    failed.joinpath("failure.json").write_text(
        json.dumps({"error": "out of memory", "overrides": ["variant=b", "seed=2"]})
    )
    sweep = read_sweep(tmp_path / "sweep", is_running=lambda folder: folder.name == "1")
    by_label = {variant.label: variant for variant in sweep.variants}
    assert by_label["a"].values["val/l1"] == [0.4]
    assert (by_label["a"].partial, by_label["a"].state) == (False, "1 finished, 1 running")
    # The failed run never wrote its config: it is known by its overrides.
    assert [run.name for run in by_label["b"].runs] == ["2", "3"]
    assert by_label["b"].partial
    assert by_label["b"].values["val/l1"] == [0.3]
    assert by_label["b"].state == "1 running, 1 failed"
    assert sweep.best("val/l1") == 0.4  # of the finished


def test_settings_that_nobody_typed(make_run: MakeRun, tmp_path: Path) -> None:
    # The experiment's file was edited between two runs; a third typed what is the default.
    make_run("0", "experiment=toy")
    make_run("1", "experiment=toy", config={"loss": {"lambda_l1": 7.0}})
    make_run("2", "experiment=toy", "seed=5", config={"loss": {"lambda_l1": 7.0}})
    sweep = read_sweep(tmp_path / "sweep")
    assert sweep.keys == ["loss.lambda_l1"]
    assert sorted(labels(sweep)) == ["lambda_l1 100.0", "lambda_l1 7.0"]
    assert [len(variant.runs) for variant in sweep.in_order] == [1, 2]


def test_how_a_run_was_started_makes_no_variant(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("0", "variant=a", "launcher=slurm", "sweep.trial=0", "logger=wandb", "seed=1")
    make_run("1", "variant=a", "resume=auto", "sweep.trial=1", "seed=2")
    make_run("2", "variant=b", "generator.norm=batch", "discriminator.norm=none")
    sweep = read_sweep(tmp_path / "sweep")
    assert sweep.keys == ["variant", "generator.norm", "discriminator.norm"]
    assert [variant.label for variant in sweep.in_order] == [
        "a · generator.norm – · discriminator.norm –",
        "b · generator.norm batch · discriminator.norm none",
    ]


def test_one_setting(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("0", "seed=1")
    make_run("1", "seed=2")
    sweep = read_sweep(tmp_path / "sweep")
    assert (labels(sweep), sweep.keys, len(sweep.variants[0].runs)) == (["toy"], [], 2)


def test_a_study_says_which_figure_counts_and_what_was_pruned(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("0", "loss.lambda_l1=27.385487761399936", values=(0.5, 0.4))
    make_run("1", "loss.lambda_l1=3.5", values=(0.9,), epochs=2, finished=False)
    make_run("2", "loss.lambda_l1=9.5", values=(0.3, 0.2))
    study = {
        "monitor": "val/l1",
        "direction": "minimize",
        "trials_wanted": 5,
        "trials": [
            {
                "number": 0,
                "state": "complete",
                "value": 0.4,
                "params": {"loss.lambda_l1": 27.385487761399936},
            },
            {"number": 1, "state": "pruned", "value": 0.9, "params": {"loss.lambda_l1": 3.5}},
            {"number": 2, "state": "fail", "value": None, "params": {}, "reason": "no val/l1"},
        ],
    }
    (tmp_path / "sweep" / "study.json").write_text(json.dumps(study))
    sweep = read_sweep(tmp_path / "sweep")
    assert [(run.state, run.reason) for run in sweep.runs] == [
        ("finished", ""),
        ("pruned", "after epoch 1"),
        ("failed", "no val/l1"),
    ]
    assert (labels(sweep), sweep.ranked_by) == (["trial 0", "trial 1", "trial 2"], "val/l1")
    assert sweep.variants[-1].rank is None


def test_a_study_whose_way_is_its_own(make_run: MakeRun, tmp_path: Path) -> None:
    for number, oddness in enumerate((1.0, 3.0, 2.0)):
        folder = make_run(str(number), f"loss.lambda_l1={number + 1}")
        text = (folder / "metrics.csv").read_text().splitlines()
        text = [f"{text[0]},val/oddness", *(f"{line},{oddness}" for line in text[1:])]
        (folder / "metrics.csv").write_text("\n".join(text) + "\n")
    study = {"monitor": "val/oddness", "direction": "maximize", "trials_wanted": 3, "trials": []}
    (tmp_path / "sweep" / "study.json").write_text(json.dumps(study))
    sweep = read_sweep(tmp_path / "sweep")
    assert (labels(sweep), sweep.ranked_by) == (["trial 1", "trial 2", "trial 0"], "val/oddness")
    assert sweep.best("val/oddness") == 3.0
    assert sweep.planned == 3
    page(sweep, tmp_path)


def test_runs_that_have_not_begun_are_waited_for(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("0", "variant=l1", "seed=0")
    make_run("1", "variant=l1", "seed=1")
    overrides = {"hydra": {"sweeper": {"params": {"variant": "l1,cgan"}}, "overrides": {}}}
    overrides["hydra"]["overrides"] = {"task": ["experiment=x", "seed=range(0,3)", "name='a,b'"]}
    file = tmp_path / "sweep" / "multirun.yaml"
    file.write_text(yaml.safe_dump(overrides))
    assert planned_jobs(tmp_path / "sweep") == 6
    sweep_report.main([str(tmp_path / "sweep")])
    text = (tmp_path / "sweep" / "report.html").read_text()
    assert "2/6" in text
    assert "class='state running'" in text
    file.write_text("hydra: 3")
    assert planned_jobs(tmp_path / "sweep") is None


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_sweep(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no runs in it"):
        read_sweep(tmp_path)


def test_doctests() -> None:
    assert doctest.testmod(variants).failed == doctest.testmod(words).failed == 0
