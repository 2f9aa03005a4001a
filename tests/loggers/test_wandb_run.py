"""Whole runs under W&B, offline, read back by its own inspector."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from i2i_lightning import config
from i2i_lightning.cli import arguments
from i2i_lightning.cli.check import check_config
from i2i_lightning.commands import sweep_report
from i2i_lightning.commands.train import APP

ReadBack = Callable[[Path], Any]

TINY = [
    "data=toyfaces",
    "data.num_train=16",
    "data.num_val=4",
    "data.batch_size=4",
    "data.crop_px=32",
    "callbacks.toyfaces=null",
    "callbacks.previews.num_samples=3",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "trainer.enable_progress_bar=false",
    "generator.base_channels=2",
    "discriminator.base_channels=2",
    "discriminator.num_layers=1",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(no_key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(checkout))


def the_run(pattern: str = "*/*/config.yaml") -> Path:
    (found,) = Path("outputs").glob(pattern)
    return found.parent


def metrics(run: Path) -> dict[int, dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["step"]): {name: float(cell) for name, cell in row.items() if cell and name != "step"}
        for row in rows
    }


def test_a_run_and_its_continuation_are_one(parts: ReadBack) -> None:
    words = ["callbacks.norms.gradients=true", "callbacks.norms.parameters=true"]
    assert APP.main([*TINY, *words, "logger=[wandb,tensorboard]"]) == 0
    run = the_run()
    first = parts(run)
    assert APP.main([f"resume={run}", "trainer.max_epochs=4"]) == 0
    found = parts(run)
    assert len(found.files) == 2
    assert {record["run_id"] for record in found.of("run")} == {(run / "wandb" / "id").read_text().strip()}
    assert found.exit_codes == [0, 0]
    assert list((run / "tensorboard").glob("events*"))

    # Scalars: every row of the CSV file, once, without a gap.
    rows = found.rows
    assert [row["batch"] for row in rows] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert [row["_step"] for row in rows] == [row["batch"] for row in rows]
    expected = metrics(run)
    assert list(expected) == [row["batch"] for row in rows]
    for row in rows:
        for name, value in expected[row["batch"]].items():
            assert row[name] == pytest.approx(value, rel=1e-6), name
    names = set(rows[3])
    assert {
        "train/generator/l1",
        "train/generator/gan",
        "train/discriminator/gan",
        "train/generator/learning_rate",
        "health/discriminator/accuracy_real",
        "norms/generator/gradient",
        "norms/discriminator/parameters",
        "val/l1",
        "epoch",
    } <= names

    # Panels: the very pixels of the files on the disk.
    panels = {row["epoch"] + 1: row for row in rows if "preview.filenames" in row}
    assert list(panels) == [1, 2, 3, 4], "one for each epoch, none for the sanity check"
    for epoch, row in panels.items():
        with Image.open(run / "images" / f"epoch_{epoch:04d}.png") as image:
            disk = np.asarray(image)
        with Image.open(found.media(row["preview.filenames"][0])) as image:
            assert image.mode == "RGB"
            sent = np.asarray(image)
        np.testing.assert_array_equal(sent, disk)
        assert (row["preview.width"], row["preview.height"]) == (disk.shape[1], disk.shape[0])
        assert row["preview.captions"] == [f"epoch {epoch}"]
        assert sent.mean() > 50
        tiles = sent[-128:, 6:]  # of the last row of samples
        assert tiles.std() > 20

    # The table of the last epoch: its pictures are decoded too.
    table = json.loads(found.media(rows[-1]["comparison.path"]).read_text())
    assert table["columns"] == ["epoch", "name", "input", "output", "target", "l1", "psnr", "ssim"]
    assert len(table["data"]) == 3
    assert all(0 < row[5] < 2 and row[6] > 0 for row in table["data"])
    (whole,) = [
        art for art in found.of("artifact") if art["type"] == "run_table" and art in found_last(found)
    ]
    tiles = [
        np.asarray(Image.open(entry["local_path"]))
        for entry in whole["manifest"]["contents"]
        if entry["path"].endswith(".png")
    ]
    assert len(tiles) == 9
    assert all(tile.shape == (32, 32, 3) and tile.max() > 100 for tile in tiles)

    # Artifacts: what is last and best, and the page.
    models = [
        art for art in found.of("artifact") if art["type"] == "model" and not art.get("use_after_commit")
    ]
    aliases = {alias for art in models for alias in art["aliases"]}
    assert {"last", "best", "epoch_4"} <= aliases
    assert {art["name"] for art in models} == {f"checkpoint-{found.of('run')[0]['run_id']}"}
    for art in models:
        (entry,) = art["manifest"]["contents"]
        assert Path(entry["local_path"]).stat().st_size == int(entry["size"]) > 0
    last = next(art for art in reversed(models) if "last" in art["aliases"])
    kept = Path(last["manifest"]["contents"][0]["local_path"])
    assert kept.samefile(run / "checkpoints" / "last.ckpt"), "no copy"
    used = [art for art in found.of("artifact") if art.get("use_after_commit")]
    first_last = next(
        art for art in first.of("artifact") if "last" in art["aliases"] and art["type"] == "model"
    )
    assert [art["digest"] for art in used] == [first_last["digest"]], (
        "it went on from what it had handed over"
    )
    galleries = [art for art in found.of("artifact") if art["type"] == "gallery"]
    assert {"index.html", "images/epoch_0004.png"} <= {
        entry["path"] for entry in galleries[-1]["manifest"]["contents"]
    }

    # Config and code version.
    head = first.of("run")[0]
    sent_config = head["config"]["update"]
    assert sent_config["loss"] == yaml.safe_load((run / "config.yaml").read_text())["loss"]
    assert sent_config["environment"]["versions"]["torch"]
    assert "git" in sent_config["environment"]
    assert head["display_name"] == "/".join(run.parts[-2:])
    assert "run_group" not in head


def found_last(found: Any) -> list[Any]:
    return [record["artifact"] for record in found.records[-1] if record["type"] == "artifact"]


def test_jobs_of_a_sweep_are_grouped_and_named_and_one_that_crashes_says_so(parts: ReadBack) -> None:
    words = [*TINY, "logger=wandb", "trainer.max_epochs=1", "--multirun", "optimizer.lr=2e-4,1e30", "seed=3"]
    assert APP.main(words) == 1
    (sweep,) = Path("outputs").glob("*/multirun/*")
    good, bad = (parts(sweep / number) for number in "01")
    heads = [found.of("run")[0] for found in (good, bad)]
    assert heads[0]["run_id"] != heads[1]["run_id"]
    assert [head["run_group"] for head in heads] == [f"pix2pix/{sweep.name}"] * 2
    assert [head["display_name"] for head in heads] == ["0: optimizer.lr=0.0002", "1: optimizer.lr=1e+30"]
    assert [head["tags"] for head in heads] == [["optimizer.lr=0.0002"], ["optimizer.lr=1e+30"]]
    assert good.exit_codes == [0]
    assert bad.exit_codes == [1]
    assert [row["batch"] for row in good.rows] == [1, 3]
    assert not [art for art in bad.of("artifact") if art["type"] == "model"]
    assert APP.main([f"resume={sweep / '0'}", "trainer.max_epochs=2"]) == 0
    again = parts(sweep / "0").of("run")[-1]
    assert again["run_group"] == f"pix2pix/{sweep.name}"
    assert again["display_name"] == "0: optimizer.lr=0.0002", "a job that goes on keeps its name"


def test_weights_that_a_run_starts_from_are_its_input(parts: ReadBack) -> None:
    words = [*TINY, "logger=wandb", "trainer.max_epochs=1"]
    assert APP.main([*words, "name=first", "callbacks.artifacts.gallery=false"]) == 0
    first = the_run("first/*/config.yaml")
    made = parts(first).of("artifact")
    assert {art["type"] for art in made} == {"model", "run_table"}
    checkpoint = first / "checkpoints" / "last.ckpt"
    none = "callbacks.artifacts.checkpoints=[]"
    assert APP.main([*words, "name=second", none, f"warm_start={checkpoint}"]) == 0
    second = parts(the_run("second/*/config.yaml"))
    (used,) = [art for art in second.of("artifact") if art["type"] == "model"]
    assert used["use_after_commit"]
    assert used["digest"] in {art["digest"] for art in made}
    assert used["name"] == f"checkpoint-{(first / 'wandb' / 'id').read_text().strip()}"


@pytest.mark.parametrize(
    ("choice", "loggers"),
    [
        ("csv", ["csv"]),
        ("wandb", ["csv", "wandb"]),
        ("tensorboard", ["csv", "tensorboard"]),
        ("all", ["csv", "wandb", "tensorboard"]),
        ("[wandb,tensorboard]", ["csv", "wandb", "tensorboard"]),
        ("[csv,wandb]", ["csv", "wandb"]),
    ],
)
def test_loggers_compose(conf: Path, choice: str, loggers: list[str]) -> None:
    config.register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose("train", overrides=[f"logger={choice}"])
    check_config(composed)
    assert list(composed.logger) == loggers


def test_the_words_of_w_and_bs_sweeps_are_understood(checkout: Path, conf: Path) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load((checkout / "docs" / "wandb_sweep.yaml").read_text())
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert sweep["command"][0] == "i2i-train"
    drawn: dict[str, Any] = {}
    for key, how in sweep["parameters"].items():
        drawn[key] = how["values"][-1] if "values" in how else how.get("value", how.get("min"))
    assert {type(value) for value in drawn.values()} >= {bool, float, str}
    drawn |= {"method.clip_norm": "null", "optimizer.betas": [0.5, 0.999]}
    words = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
    parsed = arguments.parse([*sweep["command"][1:-1], *words["args_no_hyphens"]], ["logger"])
    config.register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose("train", overrides=parsed.overrides)
    check_config(composed)
    assert composed.method.clip_norm is None
    for key, value in drawn.items():
        if value == "null":
            continue
        node = OmegaConf.select(composed, key)
        assert (OmegaConf.to_container(node) if OmegaConf.is_config(node) else node) == value
    name = sweep["metric"]["name"]
    assert name.startswith("val/")


def started(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("WANDB_SERVICE", None)
    command = [sys.executable, "-m", "i2i_lightning.commands.train", *TINY, *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_ten_runs_at_once_stay_apart(parts: ReadBack) -> None:
    words = ["logger=wandb", "trainer.max_epochs=1"]
    runs = [
        started(*words, f"seed={seed}", *(["optimizer.lr=1e30"] if seed == 4 else [])) for seed in range(10)
    ]
    ends = [run.communicate(timeout=500) for run in runs]
    assert [run.returncode for run in runs] == [int(seed == 4) for seed in range(10)], ends
    folders = sorted(path.parent for path in Path("outputs").glob("*/*/config.yaml"))
    assert len(folders) == 10
    assert folders == sorted(Path("outputs").glob("*/*")), "and nothing beside them"
    assert not [path for path in Path("outputs").rglob("*") if path.name.endswith(".tmp")]
    assert len({(folder / "wandb" / "id").read_text() for folder in folders}) == 10
    for folder in folders:
        seed = yaml.safe_load((folder / "config.yaml").read_text())["seed"]
        found = parts(folder)
        (head,) = [record for record in found.of("run") if "display_name" in record]
        assert head["config"]["update"]["seed"] == seed, "nothing of another run"
        assert len(found.files) == 1
        assert found.exit_codes == [int(seed == 4)]
        if seed != 4:
            assert [row["batch"] for row in found.rows] == [1, 3]
            assert list(metrics(folder)) == [1, 3]
            assert (folder / "checkpoints" / "last.ckpt").is_file()
            assert (folder / "index.html").is_file()
    sweep_report.write(Path("outputs"))
    with Path("outputs/runs.csv").open(newline="") as file:
        states = {row["seed"]: row["state"] for row in csv.DictReader(file)}
    assert states == {str(seed): "failed" if seed == 4 else "finished" for seed in range(10)}


@pytest.mark.slow
def test_runs_that_start_in_one_second_have_folders_of_their_own(parts: ReadBack) -> None:
    assert APP.main([*TINY, "trainer.max_epochs=1", "hydra.run.dir=${unused_folder:outputs/a/b}"]) == 0
    assert APP.main([*TINY, "trainer.max_epochs=1", "hydra.run.dir=${unused_folder:outputs/a/b}"]) == 0
    assert sorted(path.name for path in Path("outputs/a").iterdir()) == ["b", "b_2"]


@pytest.mark.ddp
def test_two_processes_make_one_run(parts: ReadBack) -> None:
    words = ["logger=all", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run = started(*words, "callbacks.norms.gradients=true", "callbacks.comparison.every_n_epochs=1")
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    found = parts(the_run())
    assert len(found.files) == 1
    assert [row["batch"] for row in found.rows] == [1, 3], "16 images, 2 processes, batches of 4, 2 epochs"
    assert all("preview.filenames" in row and "comparison.path" in row for row in found.rows)
    assert all("norms/generator/gradient" in row for row in found.rows)
    assert len(list((the_run() / "tensorboard").glob("events*"))) == 1
