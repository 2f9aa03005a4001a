"""W&B's own programs at work on our runs: sync, sweep and agent, and runs that are online."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from i2i_lightning.loggers.wandb_log import WandbLog
from tests.loggers.wandb_server import Server

KEY = "0" * 40


@pytest.fixture
def server(no_key: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("wandb")
    server = Server()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    yield server
    server.close()
    assert not server.unknown, server.unknown


def wandb_command(server: Server, *words: str) -> str:
    """Run W&B's command line against the server, and return what it said."""
    environment = {**os.environ, "WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY}
    # The commands of this project as they are installed beside the interpreter.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wandb_sync_sends_the_parts_of_a_run_in_order(server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    for first in (9, 39):
        log = WandbLog(run, group="sweep", tags=["a=1"], mode="offline")
        log.log_hyperparams({"loss": {"lambda_l1": 100}})
        if first > 9:
            log.use_checkpoint(checkpoint, "resume")
        for step in range(first, first + 30, 10):
            log.log_metrics({"a": step / 8}, step=step)
        log.log_image("preview", [pixels], step=first + 20)
        log.log_table("comparison", ["output"], [[pixels]], step=first + 20)
        log.log_files("checkpoint", {"checkpoint.ckpt": checkpoint}, ["last", f"epoch_{first}"])
        log.finalize("success")
    wandb_command(server, "sync", *map(str, sorted(run.glob("wandb/offline-run-*"))))

    identity = (run / "wandb" / "id").read_text().strip()
    assert list(server.runs) == [identity]
    sent = server.runs[identity]
    assert (sent["displayName"].split("/")[-1], sent["groupName"], sent["tags"]) == ("run", "sweep", ["a=1"])
    assert json.loads(sent["config"])["loss"]["value"] == {"lambda_l1": 100}
    rows = server.history(identity)
    assert [(row["batch"], row["a"]) for row in rows] == [(s, s / 8) for s in range(9, 69, 10)]
    for row in (rows[2], rows[5]):
        (name,) = row["preview"]["filenames"]
        shown = np.asarray(Image.open(io.BytesIO(server.files[f"{identity}/{name}"])))
        np.testing.assert_array_equal(shown, pixels)
    # The tables' pictures are files of their artifacts.
    tables = [i for i, made in enumerate(server.artifacts) if made["artifactTypeName"] == "run_table"]
    tiles = [data for name, data in server.files.items() if name.startswith(f"artifacts/{tables[0]}/media")]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(tiles[0]))), pixels)
    (model,) = [i for i, made in enumerate(server.artifacts) if made["artifactTypeName"] == "model"]
    assert server.files[f"artifacts/{model}/checkpoint.ckpt"] == b"weights"
    assert {"last", "epoch_9"} <= {alias["alias"] for alias in server.artifacts[model]["aliases"]}
    assert all(made["committed"] for made in server.artifacts)
    assert server.used == [(identity, model)], "what the second part went on from is what the first had made"


ONLINE = """
import os, signal, sys, time
from i2i_lightning.loggers.csv_log import CSVLog
from i2i_lightning.loggers.wandb_log import WandbLog
logs = [CSVLog("run"), WandbLog("run")]
assert logs[1].mode == "online"
first, end = int(sys.argv[1]), int(sys.argv[2])
for step in range(first, end, 10):
    for log in logs:
        log.log_metrics({"a": step / 8}, step=step)
    if step == 39:
        while not os.path.exists("has_arrived"):
            time.sleep(0.1)
for log in logs:
    log.save()
if first == 9:
    os.kill(os.getpid(), signal.SIGKILL)
for log in logs:
    log.finalize("success")
"""


@pytest.mark.slow
def test_a_run_that_is_online_goes_on_where_its_process_was_killed(server: Server, checkout: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "WANDB_BASE_URL": server.address,
        "WANDB_API_KEY": KEY,
    }
    killed = subprocess.Popen([sys.executable, "-c", ONLINE, "9", "100"], env=environment)
    for _ in range(600):
        if any(len(run["history"]) >= 3 for run in server.runs.values()):
            break
        time.sleep(0.1)
    Path("has_arrived").touch()
    assert killed.wait(60) == -signal.SIGKILL
    (identity,) = server.runs
    assert 3 <= len(server.history(identity)) < 10, "W&B has not sent all of it"
    # From a checkpoint that was written after batch 79.
    command = [sys.executable, "-c", ONLINE, "89", "110"]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert list(server.runs) == [identity]
    assert [(row["batch"], row["a"]) for row in server.history(identity)] == [
        (step, step / 8) for step in range(9, 110, 10)
    ]
    assert "Tried to log to step" not in again.stderr, "what the server has is not sent again"
    assert server.runs[identity]["exitcode"] == 0


TINY = [
    "data.num_train=8",
    "data.num_val=4",
    "data.num_test=4",
    "data.crop_px=32",
    "data.batch_size=4",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "generator.base_channels=2",
    "discriminator.base_channels=2",
    "discriminator.num_layers=1",
]


@pytest.mark.slow
def test_w_and_bs_own_sweep_trains(server: Server, checkout: Path) -> None:
    """``wandb sweep`` on our file, ``wandb agent`` on the sweep, and each trial a run of its own."""
    sweep = yaml.safe_load((checkout / "docs" / "wandb_sweep.yaml").read_text())
    sweep["command"][-1:-1] = TINY
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    said = wandb_command(server, "sweep", "--entity", "someone", "sweep.yaml")
    assert "wandb agent someone/i2i_lightning/sweep" in said
    values = {
        key: how["values"] if "values" in how else [how["min"], how["max"]]
        for key, how in yaml.safe_load(server.sweep)["parameters"].items()
    }
    ends = [{key: drawn[place] for key, drawn in values.items()} for place in (0, -1)]
    server.drawn = [("trial-a", ends[0]), ("trial-b", ends[1])]
    wandb_command(server, "agent", "someone/i2i_lightning/sweep")

    assert list(server.runs) == ["trial-a", "trial-b"]
    folders = {
        (path.parent / "wandb/id").read_text().strip(): path
        for path in Path().glob("outputs/*/*/config.yaml")
    }
    for name, drawn in zip(server.runs, ends, strict=True):
        run = server.runs[name]
        assert (run["sweep"], run["exitcode"]) == ("sweep", 0)
        config, sent = yaml.safe_load(folders[name].read_text()), json.loads(run["config"])
        for key, value in drawn.items():
            group, _, leaf = key.partition(".")
            assert (config[group][leaf] if leaf else config[group]) == value
            assert (sent[group]["value"][leaf] if leaf else sent[group]["value"]) == value
        rows = server.history(name)
        assert [row["batch"] for row in rows] == [0, 1]
        made = {art["artifactTypeName"] for art in server.artifacts if art["runName"] == name}
        assert made == {"model", "gallery", "run_table"}
        assert 0 < rows[-1][sweep["metric"]["name"]] < 1, "what the sweep looks at"
