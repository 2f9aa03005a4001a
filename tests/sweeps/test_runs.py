from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

import i2i_lightning.sweeps.directions as directions
import i2i_lightning.sweeps.runs as runs
from i2i_lightning.sweeps.directions import badness, better
from i2i_lightning.sweeps.runs import curves, find_runs, read_run, split

from .conftest import MakeRun, report


def test_everything_that_a_run_tells(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("3", "variant=l1+gan", "seed=2", "++loss.lambda_l1=10", figures=report(0.6, 0.9, 15.0))
    evaluated = folder / "evaluation" / "test_last" / "metrics.json"
    evaluated.parent.mkdir(parents=True)
    figures = {"outputs": {"kid": {"mean": 0.01, "std": 0.001}}, "copied input": {"kid": {"mean": 0.3}}}
    evaluated.write_text(json.dumps({"directions": {"ab": {"figures": figures}}}))
    run = read_run(folder, tmp_path / "sweep")
    assert (run.name, run.state, run.reason, run.seed) == ("3", "finished", "", "2")
    assert run.overrides == {"variant": "l1+gan", "seed": "2", "loss.lambda_l1": "10"}
    assert (run.epochs_done, run.max_epochs) == (2, 2)
    assert run.metrics == {
        "val/l1": 0.4,
        "judge_iou_ratio": pytest.approx(0.75),
        "judge_iou": 0.6,
        "judge_landmark_error": 0.05,
        "photo_probability": 0.5,
        "pixel_error": 15.0,
        "sharpness": 0.9,
        "test_last/kid": 0.01,
    }
    assert run.references == {
        "real": {"judge_iou": 0.8, "judge_landmark_error": 0.02, "photo_probability": 1.0},
        "copied_input": {"judge_iou": 0.7, "pixel_error": 24.0, "sharpness": 1.7},
    }
    assert run.curves["val/l1"] == [(1.0, 0.5), (2.0, 0.4)]
    assert run.curves["train/generator/l1"] == [(0.5, 0.6), (1.5, 0.5)]
    assert all(better(name) is not None for name in run.metrics)


def test_a_run_without_anything(tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    run = read_run(tmp_path / "run", tmp_path)
    assert (run.state, run.metrics, run.curves, run.epochs_done) == ("waiting", {}, {}, 0)


@pytest.mark.parametrize("cut", [1, 7, 20, 33, 60])
def test_half_written_files(make_run: MakeRun, tmp_path: Path, cut: int) -> None:
    folder = make_run("0", figures=report(0.6, 0.9, 15.0), finished=False)
    for name in ("metrics.csv", "report.json", "config.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[: max(0, len(text) - cut)])
    run = read_run(folder, tmp_path)
    assert "judge_iou" not in run.metrics
    # A line without its end may be half of a number.
    assert [y for _, y in run.curves.get("val/l1", [])] in ([], [0.5])


def test_a_resumed_run_wrote_a_row_again() -> None:
    rows = [{"step": "9", "epoch": "0", "val/l1": x} for x in ("0.5", "nan", "0.3")]
    assert curves(rows) == {"val/l1": [(1.0, 0.3)]}


@pytest.mark.parametrize(
    ("page", "files", "running", "state", "reason"),
    [
        ("finished", {}, False, "finished", ""),
        ("running · epoch 2 of 9", {}, True, "running", ""),
        ("running · epoch 2 of 9", {".lock": ""}, False, "stopped", "killed"),
        ("running · epoch 2 of 9", {}, False, "running", ""),
        ("stopped: interrupted by hand", {}, False, "stopped", "interrupted by hand"),
        ("stopped: stopped by SIGTERM", {}, False, "stopped", "stopped by SIGTERM"),
        ("stopped: the loss is &lt;nan&gt;", {}, False, "failed", "the loss is <nan>"),
        ("finished: early, after epoch 1", {}, False, "stopped", "early, after epoch 1"),
        ("finished: early, after epoch 1", {"finished.json": "{}"}, False, "finished", ""),
        ("finished", {"failure.json": '{"error": "no data\\nmore"}'}, False, "failed", "no data"),
        ("finished", {"failure.json": '{"error": "no data"}'}, True, "running", ""),
    ],
)
def test_states(
    make_run: MakeRun,
    tmp_path: Path,
    page: str,
    files: dict[str, str],
    running: bool,
    state: str,
    reason: str,
) -> None:
    folder = make_run("0", finished=False, epochs=9)
    word = page.split(" ")[0].rstrip(":")
    (folder / "index.html").write_text(f"<style>{'x' * 9000}</style><p class='state {word}'>{page}</p>")
    for name, text in files.items():
        (folder / name).write_text(text)
    run = read_run(folder, tmp_path, lambda _: running)
    assert (run.state, run.reason) == (state, reason)


def test_runs_are_found_in_the_order_of_their_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("10", "2", "b/1", "a"):
        make_run(name)
    (tmp_path / "sweep" / "2" / "evaluation").mkdir()
    (tmp_path / "sweep" / "2" / "evaluation" / "metrics.csv").write_text("step\n")  # part of the run above
    (tmp_path / "sweep" / "4").mkdir()
    (tmp_path / "sweep" / "4" / "failure.json").write_text('{"error": "x", "overrides": ["seed=4"]}')
    found = find_runs(tmp_path / "sweep")
    assert [str(path.relative_to(tmp_path / "sweep")) for path in found] == ["2", "4", "10", "a", "b/1"]
    assert read_run(found[1], tmp_path).overrides == {"seed": "4"}
    assert find_runs(found[0]) == [found[0]]  # a single run's own folder


def test_directions() -> None:
    assert better("val/judge_iou") == better("test_last/judge_iou_ab") == "higher"
    assert better("val/nothing_known") is None
    assert badness("sharpness", 2.0) == pytest.approx(badness("sharpness", 0.5))
    assert badness("sharpness", 0.9) < badness("sharpness", 1.2)
    assert badness("psnr", 20) < badness("psnr", 10)
    assert badness("val/l1", 0.1) < badness("val/l1", 0.2)
    assert split("a='x=1,2'") == ("a", "x=1,2")


def test_doctests() -> None:
    assert doctest.testmod(runs).failed == doctest.testmod(directions).failed == 0
