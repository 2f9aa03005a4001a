from __future__ import annotations

import builtins
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from i2i_lightning.loggers.csv_log import CSVLog
from i2i_lightning.loggers.pictures import preview_file
from i2i_lightning.loggers.wandb_file import BLOCK, FILE_HEADER, HEADER, last_step, records
from i2i_lightning.loggers.wandb_log import WandbLog, has_key, server_address
from i2i_lightning.types import UserError

ReadBack = Callable[[Path], Any]


def test_a_clear_error_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without_wandb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_wandb)
    with pytest.raises(UserError, match=r"pip install 'i2i_lightning\[wandb\]'"):
        WandbLog(tmp_path)


def test_key_is_found_where_wandb_looks(
    no_key: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not has_key()
    host = urlsplit(server_address()).netloc
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


def test_modes(no_key: None, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(UserError, match="mode=onlin:"):
        WandbLog(tmp_path, mode="onlin")
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        WandbLog(tmp_path, mode="online")
    nothing = WandbLog(tmp_path / "run", mode="disabled")
    nothing.log_metrics({"a": 1.0}, step=0)
    nothing.log_files("gallery", {"x": Path(__file__)})
    nothing.use_checkpoint(Path(__file__), "warm_start")
    nothing.warn("title", "text")
    nothing.finalize("success")
    assert nothing.experiment is None
    assert not (tmp_path / "run").exists()


def test_offline_run_without_a_key_lies_in_the_run_folder(
    no_key: None, parts: ReadBack, tmp_path: Path
) -> None:
    import wandb

    run = tmp_path / "toy" / "now"
    log = WandbLog(run, tags=["x" * 80, "b"], group="g", notes="n")
    log.log_hyperparams({"loss": {"lambda_l1": 100}, "betas": [0.5, 0.999]})
    log.log_metrics({"train/generator/l1": 0.5}, step=3)
    log.log_image("preview", [np.full((8, 12, 3), 200, np.uint8)], step=3, caption=["epoch 1"])
    log.log_table("comparison", ["name", "output"], [["x.png", np.full((8, 12, 3), 90, np.uint8)]], step=3)
    log.warn("collapse", "epoch 1: all the same")
    log.note({"best/epoch": 1})
    log.finalize("success")
    assert wandb.run is None, "a finished run does not swallow the next one"
    assert "WANDB_DATA_DIR" not in os.environ
    found = parts(run)
    (head,) = [record for record in found.of("run") if "display_name" in record]
    assert (head["display_name"], head["run_group"]) == ("toy/now", "g")
    assert head["tags"] == ["x" * 64, "b"]
    assert head["config"]["update"]["loss"] == {"lambda_l1": 100}
    (row,) = found.rows
    assert (row["_step"], row["batch"], row["train/generator/l1"]) == (3, 3, 0.5)
    picture = found.media(row["preview.filenames"][0])
    assert np.asarray(Image.open(picture)).shape == (8, 12, 3)
    assert np.asarray(Image.open(picture)).mean() == 200
    assert row["preview.captions"] == ["epoch 1"]
    assert found.of("alert")[0]["text"] == "epoch 1: all the same"
    assert found.exit_codes == [0]
    assert {"glob_name": "*", "step_metric": "batch"}.items() <= found.of("metric")[1].items()
    # The table's pictures wait for the sync with the run, not in the home folder.
    (table,) = [found for found in found.of("artifact") if found["type"] == "run_table"]
    local = [Path(entry["local_path"]) for entry in table["manifest"]["contents"]]
    assert all(path.is_relative_to(run.resolve()) for path in local)
    (tile,) = [path for path in local if path.read_bytes().startswith(b"\x89PNG")]
    assert np.asarray(Image.open(tile)).mean() == 90
    assert not list(run.rglob("*.patch"))


LOGS = """
from i2i_lightning.loggers.wandb_log import WandbLog
for save_code in (False, True):
    log = WandbLog(f"code {save_code}", mode="offline", save_code=save_code)
    log.log_metrics({"a": 0.0}, step=0)
    log.finalize("success")
"""


def test_code_is_kept_only_on_request(
    no_key: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkout: Path
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text("pass")
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "script.py"], [*author, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *words], check=True)
    Path("script.py").write_text(LOGS)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("WANDB_SERVICE", None)
    subprocess.run([sys.executable, "script.py"], env=environment, check=True)
    for save_code in (False, True):
        names = {path.name for path in Path(f"code {save_code}").rglob("*") if path.is_file()}
        assert ({"diff.patch", "script.py"} <= names) is save_code
        assert save_code or not {"diff.patch", "script.py"} & names


@pytest.mark.parametrize(
    "pixels",
    [np.full((8, 8, 3), 0.5, np.float32), np.full((3, 8, 8), 9, np.uint8), np.full((8, 8), 9, np.uint8)],
    ids=["float", "CHW", "grey"],
)
def test_what_would_show_black_or_stretched_is_refused(no_key: None, tmp_path: Path, pixels: Any) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(TypeError, match=r"preview: loggers take pictures as uint8 \(H, W, 3\)"):
        WandbLog(tmp_path).log_image("preview", [pixels], step=0)


def test_a_failed_run_is_recorded_as_failed_and_goes_on_as_itself(
    no_key: None, parts: ReadBack, tmp_path: Path
) -> None:
    first = WandbLog(tmp_path)
    for step in (9, 19, 29):
        first.log_metrics({"a": step}, step=step)
    first.finalize("failed")
    second = WandbLog(tmp_path)  # from a checkpoint after batch 14: 19 and 29 come again
    for step in (19, 29, 39):
        second.log_metrics({"a": step}, step=step)
    second.after_save_checkpoint(None)
    second.log_metrics({"late": 1}, step=39)
    second.log_metrics({"a": 49}, step=49)
    second.finalize("success")
    found = parts(tmp_path)
    assert len(found.files) == 2
    assert len({file.name for file in found.files}) == 1, "one identity"
    assert second.version == first.version
    assert [(row["_step"], row["batch"], row["a"]) for row in found.rows] == [
        (step, step, step) for step in (9, 19, 29, 39, 49)
    ]
    assert found.rows[-1]["late"] == 1
    assert found.exit_codes == [1, 0]


KILLED = """
import os, signal, sys, time
import numpy as np
from i2i_lightning.loggers.csv_log import CSVLog
from i2i_lightning.loggers.wandb_log import WandbLog
logs = [CSVLog(sys.argv[1]), WandbLog(sys.argv[1], mode="offline")]
for step in range(9, 100, 10):
    for log in logs:
        log.log_metrics({"a": step / 8}, step=step)
    if step == 39:
        time.sleep(2.5)
for log in logs:
    log.log_metrics({"val/l1": 0.5, "epoch": 1}, step=99)
    log.save()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_took_along_is_sent_again(
    no_key: None, parts: ReadBack, tmp_path: Path, checkout: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("WANDB_SERVICE", None)  # that of this process would outlive it
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -9
    reached = last_step(parts(tmp_path).files[0])
    assert 29 <= reached < 99, "W&B holds back what the last second brought"
    preview_file(tmp_path, 2).parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(preview_file(tmp_path, 2))
    logs = [CSVLog(tmp_path), WandbLog(tmp_path, mode="offline")]
    for step in (109, 119):
        for log in logs:
            log.log_metrics({"a": step / 8}, step=step)
    for log in logs:
        log.finalize("success")
    found = parts(tmp_path)
    assert [(row["batch"], row["a"]) for row in found.rows] == [(s, s / 8) for s in range(9, 120, 10)]
    assert [row["_step"] for row in found.rows] == list(range(9, 120, 10))
    (row,) = [row for row in found.rows if "preview.filenames" in row]
    assert (row["batch"], row["val/l1"], row["epoch"]) == (99, 0.5, 1)
    shown = np.asarray(Image.open(found.media(row["preview.filenames"][0])))
    np.testing.assert_array_equal(shown, pixels)


def test_a_server_that_cannot_be_reached_costs_one_warning(
    no_key: None,
    parts: ReadBack,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("i2i_lightning.loggers.wandb_log.INIT_TIMEOUT_S", 1.0)
    with caplog.at_level(logging.WARNING):
        log = WandbLog(tmp_path)
        assert log.mode == "online"
        for step in range(3):
            log.log_metrics({"a": step}, step=step)
        log.finalize("success")
    assert caplog.text.count("W&B cannot be reached") == 1
    assert "wandb sync" in caplog.text
    assert [row["batch"] for row in parts(tmp_path).rows] == [0, 1, 2]
    caplog.clear()
    again = WandbLog(tmp_path)  # what is not sent yet must be sent first
    again.log_metrics({"a": 3}, step=3)
    again.finalize("success")
    assert "has not been sent" in caplog.text
    assert [row["batch"] for row in parts(tmp_path).rows] == [0, 1, 2, 3]


def test_files_stay_what_they_were_and_say_where_weights_came_from(
    no_key: None, parts: ReadBack, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    checkpoint = source / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    first = WandbLog(source)
    first.log_files("checkpoint", {"checkpoint.ckpt": checkpoint}, ["last", "best"], {"batches": 3})
    first.use_checkpoint(checkpoint, "resume")
    first.finalize("success")
    later = checkpoint.with_name("later")
    later.write_bytes(b"later weights")
    later.replace(checkpoint)
    (model,) = [found for found in parts(source).of("artifact") if not found.get("use_after_commit")]
    assert model["name"] == f"checkpoint-{first.version}"
    assert model["type"] == "model"
    assert {"last", "best"} <= set(model["aliases"])
    (entry,) = model["manifest"]["contents"]
    assert Path(entry["local_path"]).read_bytes() == b"weights", "not what has replaced it since"

    second = WandbLog(target)
    second.use_checkpoint(Path(entry["local_path"]), "warm_start")
    second.use_checkpoint(checkpoint, "warm_start")
    second.finalize("success")
    used = parts(target).of("artifact")
    assert all(found["use_after_commit"] for found in used)
    assert [found["name"] for found in used] == [f"checkpoint-{first.version}"] * 2
    assert used[0]["digest"] == model["digest"], "W&B recognises the version"
    assert used[1]["digest"] != model["digest"]
    assert parts(source).of("artifact")[1]["digest"] == model["digest"], "resumed from what it had sent"

    third = WandbLog(source)
    third.use_checkpoint(checkpoint, "resume")  # a checkpoint of its own that was never sent
    third.finalize("success")
    assert len(parts(source).of("artifact")) == 2


def test_w_and_bs_sweep_agent_names_the_run(
    no_key: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    log = WandbLog(tmp_path / "a")
    log.log_metrics({"a": 0.0}, step=0)
    log.finalize("success")
    assert log.version != "agents", "a variable left over in a shell would make all runs one"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    log = WandbLog(tmp_path / "b")
    log.log_metrics({"a": 0.0}, step=0)
    log.finalize("success")
    assert log.version == "agents"


def test_another_process_begins_its_own(no_key: None, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    log = WandbLog(tmp_path)
    log.log_metrics({"a": 0.0}, step=0)
    assert pickle.loads(pickle.dumps(log))._run is None
    log.finalize("success")


# Reading how far an offline part has come.


def framed(payloads: list[bytes]) -> bytes:
    """Write records as W&B does, in pieces where a block ends."""
    data = bytearray(FILE_HEADER)
    for payload in payloads:
        first = True
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < HEADER.size:
                data += bytes(left)
                continue
            piece, payload = payload[: left - HEADER.size], payload[left - HEADER.size :]
            kind = (1 if first else 4) if not payload else (2 if first else 3)
            data += HEADER.pack(0, len(piece), kind) + piece
            first = False
            if not payload:
                break
    return bytes(data)


def test_records_over_blocks_and_torn_ends() -> None:
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(int(size)) for size in rng.integers(1, 90_000, 30)]
    data = framed(payloads)
    assert list(records(data)) == payloads
    for cut in (1, 100, BLOCK + 5):
        whole = list(records(data[:-cut]))
        assert whole == payloads[: len(whole)]
        assert len(whole) < len(payloads)
    late = list(records(data, first_block=len(data) // BLOCK // 2))
    assert 0 < len(late) < len(payloads)
    assert late == payloads[-len(late) :]


def test_last_step_is_found_behind_much_else(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    def history(step: int) -> bytes:
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.history.step.num = step
        return bytes(record.SerializeToString())

    def noise() -> bytes:
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.output_raw.line = "x" * 20_000
        return bytes(record.SerializeToString())

    file = tmp_path / "run.wandb"
    file.write_bytes(framed([history(3), history(17), *[noise() for _ in range(40)]]))
    assert last_step(file) == 17
    file.write_bytes(framed([noise()]))
    assert last_step(file) == -1
    file.write_bytes(b"")
    assert last_step(file) == -1
