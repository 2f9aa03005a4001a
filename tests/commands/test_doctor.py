"""``i2i-doctor``: one page and the same as JSON; what is broken is shown as such, and never a traceback."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from i2i_lightning.commands import doctor
from i2i_lightning.diagnosis import findings, machine, speed, surroundings
from i2i_lightning.diagnosis.findings import Errand, Finding, Section, examine


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Address of something that answers everything by 404."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without keys, jobs, programs or a network, in an empty folder."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SLURM_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("I2I_WEIGHTS", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)


def program(tmp_path: Path, name: str, script: str) -> None:
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def one(found: Any, name: str) -> Finding:
    (finding,) = [finding for finding in found if finding.name == name]
    return finding


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        doctor.main(list(words))
    return stop.value.code  # type: ignore[return-value]


def test_the_page_and_its_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "meet", lambda: 1.5)
    code = run("--no-probe", "--json", "page.json")
    page = capsys.readouterr().out
    result = json.loads((tmp_path / "page.json").read_text())
    assert max(map(len, page.splitlines())) <= 100
    assert "Traceback" not in page
    assert code == (1 if result["problems"] else 0)
    for section in result["sections"]:
        assert section["title"] in page
        for finding in section["findings"]:
            assert finding["name"] in page
            # The same words, whatever the line breaks.
            assert "".join(finding["text"].split()) in "".join(page.split())
    assert list(tmp_path.glob("**/.i2i-doctor-*")) == []
    assert not (tmp_path / "outputs").exists()


def test_json_on_stdout_has_a_stable_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "meet", lambda: 1.5)
    run("--no-probe", "--json", "-")
    result = json.loads(capsys.readouterr().out)
    assert list(result) == [
        "schema", "program", "machine", "platform", "time", "seconds", "problems", "notes", "sections",
    ]  # fmt: skip
    assert result["schema"] == 1
    assert [section["title"].partition(",")[0] for section in result["sections"]] == [
        "Versions",
        "Devices",
        "Processes",
        "Number formats",
        "SLURM",
        "Weights & Biases",
        "Weights of metrics and losses",
        "Disk",
    ]
    for section in result["sections"]:
        assert list(section) == ["title", "findings"]
        for finding in section["findings"]:
            assert list(finding) == ["name", "status", "text", "advice", "values"]
            assert finding["status"] in ("ok", "note", "problem")
    names = {finding["name"] for section in result["sections"] for finding in section["findings"]}
    assert {
        "i2i_lightning", "python", "packages", "cpu", "memory", "back-ends", "two processes", "slurm",
        "wandb", "server", "at hand", "outputs", "cache", "temporary",
    } <= names  # fmt: skip


def test_a_problem_is_the_exit_status_and_the_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = [Section("Disk", (Finding("outputs", "full", "problem", "make room"), Finding("tmp", "fine")))]
    monkeypatch.setattr(doctor, "examination", lambda data, probes: iter(sections))
    assert run() == 1
    page = capsys.readouterr().out
    assert "PROBLEM  outputs       full\n                       -> make room\nOK       tmp" in page
    assert page.splitlines()[-2].startswith("1 PROBLEM, 0 notes.")
    assert page.splitlines()[-1] == "  Disk, outputs"
    sections[:] = [Section("Disk", (Finding("outputs", "small", "note"),))]
    assert run() == 0
    assert "No problem, 1 note." in capsys.readouterr().out


def test_a_check_that_fails_is_a_finding_and_the_next_one_runs() -> None:
    def breaks() -> Iterator[Finding]:
        yield Finding("first", "fine")
        raise OSError("libcudart.so.12: cannot open shared object file: No such file\nand more")

    section = examine("Devices", {"gpu": breaks, "other": lambda: [Finding("other", "fine")]})
    assert [finding.name for finding in section.findings] == ["first", "gpu", "other"]
    failed = section.findings[1]
    assert failed.status == "problem"
    assert "libcudart.so.12" in failed.text
    assert "and more" not in failed.text


def test_torch_that_does_not_load_leaves_a_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "meet", lambda: 1.5)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("--no-probe") == 1
    page = capsys.readouterr().out
    assert "Traceback" not in page
    assert page.count("could not be examined: ") >= 2
    assert "Disk" in page


def test_an_unwritable_json_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(findings_error()) as error:
        doctor.write({"a": 1}, "no/such/folder/page.json")
    assert "--json no/such/folder/page.json: cannot be written" in str(error.value)


def findings_error() -> type[Exception]:
    from i2i_lightning.types import UserError

    return UserError


class TestVersions:
    def test_our_own_bounds_are_kept_here(self) -> None:
        found = list(machine.versions("abc"))
        assert not [finding for finding in found if finding.status == "problem"]
        packages = one(found, "packages").values
        assert packages["needs"]["torch"].startswith(">=")
        assert packages["versions"].keys() >= {"torch", "lightning", "hydra-core"}
        assert "pytest" not in packages["needs"]

    def test_old_and_missing_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        have = {"torch": "2.1.0", "numpy": "2.0.0"}

        def version(name: str) -> str:
            if name not in have:
                raise PackageNotFoundError(name)
            return have[name]

        monkeypatch.setattr(machine, "version", version)
        wanted = ["torch>=2.6", "numpy>=1.26", "pillow>=10", "wandb>=0.19; extra == 'wandb'"]
        found = list(machine._packages([*wanted, "pytest>=8; extra == 'dev'"], ["wandb"]))
        assert one(found, "packages").values["versions"] == {"numpy": "2.0.0"}
        assert one(found, "torch").status == one(found, "pillow").status == "problem"
        assert one(found, "torch").text == "2.1.0; needs >=2.6"
        assert one(found, "pillow").advice == "pip install 'pillow>=10'"
        assert one(found, "[wandb]").status == "ok"
        assert "pytest" not in [finding.name for finding in found]

    def test_an_unsuitable_python(self) -> None:
        (finding,) = machine._python(">=3.99")
        assert finding.status == "problem"


class TestDevices:
    def test_threads_that_are_held_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr("i2i_lightning.data.cache.available_cores", lambda: 8)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
        monkeypatch.setattr(machine, "cpu_quota", lambda: 4.5)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        (finding,) = machine.processor()
        assert "4 of 16 cores usable (8 by affinity, 4.5 by the control group)" in finding.text
        assert finding.status == "note"
        assert "OMP_NUM_THREADS=1 keeps torch to 1" in finding.advice
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        (finding,) = machine.processor()
        assert "export OMP_NUM_THREADS=4" in finding.advice
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        assert next(iter(machine.processor())).status == "ok"
        monkeypatch.setattr(os, "getloadavg", lambda: (32.0, 1.0, 1.0))
        assert "the machine is busy" in next(iter(machine.processor())).advice

    def test_the_control_group_bounds_memory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        group = tmp_path / "group"
        group.mkdir()
        (group / "memory.max").write_text(str(2**30))
        (group / "cpu.max").write_text("150000 100000\n")
        (tmp_path / "memory.max").write_text("max\n")
        monkeypatch.setattr(machine, "_control_groups", lambda controller: iter([group, tmp_path]))
        assert machine.memory_limit_bytes() == 2**30
        assert machine.cpu_quota() == 1.5
        monkeypatch.setattr(machine, "_total_memory_bytes", lambda: 8 * 2**30)
        (finding,) = machine.memory()
        assert "of 1.0 GiB, the control group's share of 8.0 GiB" in finding.text
        assert finding.status == "note"

    def test_a_gpu_that_torch_does_not_see(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        program(tmp_path, "nvidia-smi", "echo 550.54.14; echo 550.54.14")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", None)
        (finding,) = machine.accelerators()
        assert finding.status == "problem"
        assert "the driver (550.54.14) sees 2, torch sees none" in finding.text
        monkeypatch.setattr(torch.version, "cuda", "12.4")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        (finding,) = machine.accelerators()
        assert finding.status == "note"

    def test_number_formats_of_the_cpu(self) -> None:
        (finding,) = machine.precision("cpu")
        assert finding.status == "ok"
        assert set(finding.values) == {"fp32", "bf16", "fp16", "fp64"}
        assert finding.values["fp32"]["word"] == "supported"
        assert finding.advice.startswith("precision=")

    def test_what_is_slow_emulated_or_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        def seconds(device: str, dtype: torch.dtype) -> float:
            if dtype == torch.float16:
                raise RuntimeError('"addmm_impl_cpu_" not implemented for Half')
            return {torch.float32: 1.0, torch.bfloat16: 4.0, torch.float64: 10.0}[dtype]

        monkeypatch.setattr(machine, "_seconds", seconds)
        monkeypatch.setattr(
            machine, "_native", lambda device: dict.fromkeys(machine.FORMATS, True) | {"bf16": False}
        )
        (finding,) = machine.precision("cpu")
        words = {name: values["word"] for name, values in finding.values.items()}
        assert words == {
            "fp32": "supported", "bf16": "emulated", "fp16": "not supported", "fp64": "slow",
        }  # fmt: skip
        assert "not implemented for Half" in finding.values["fp16"]["why"]
        assert "fp32, the default, is right" in finding.advice

    def test_bf16_is_recommended_where_it_is_quicker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(
            machine, "_seconds", lambda device, dtype: 0.2 if dtype == torch.bfloat16 else 1.0
        )
        monkeypatch.setattr(machine, "_native", lambda device: dict.fromkeys(machine.FORMATS, True))
        (finding,) = machine.precision("cuda:0")
        assert finding.advice.startswith("precision=bf16 is quicker here")
        assert "tf32" in finding.values


class TestProcesses:
    def test_a_meeting_that_fails_or_never_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails() -> float:
            raise RuntimeError("connect: connection refused")

        finding = one(surroundings.distributed(Errand(fails)), "two processes")
        assert finding.status == "problem"
        assert "connection refused" in finding.text
        monkeypatch.setattr(surroundings, "MEETING_LIMIT_S", -4.9)
        finding = one(surroundings.distributed(Errand(lambda: time.sleep(30) or 1.0)), "two processes")
        assert finding.status == "problem"

    def test_children_that_cannot_start_are_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(surroundings, "_MEET", "raise SystemExit('no torch here')")
        with pytest.raises(RuntimeError, match="no torch here"):
            surroundings.meet()
        monkeypatch.setattr(surroundings, "_MEET", "import time; time.sleep(60)")
        monkeypatch.setattr(surroundings, "MEETING_LIMIT_S", 0.5)
        began = time.perf_counter()
        with pytest.raises(RuntimeError, match="did not find each other"):
            surroundings.meet()
        assert time.perf_counter() - began < 20

    @pytest.mark.ddp
    def test_two_processes_meet(self) -> None:
        assert surroundings.meet() > 0


class TestSlurm:
    def test_none_here(self) -> None:
        (finding,) = surroundings.slurm()
        assert finding.status == "note"
        assert "no sbatch here" in finding.text

    def test_partitions_and_the_job_around(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program(tmp_path, "sbatch", "echo slurm 22.05.8")
        program(tmp_path, "srun", "echo slurm 22.05.8")
        program(tmp_path, "sinfo", "echo 'gpu*|up|1-00:00:00|4'; echo 'long|down|infinite|2'")
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("SLURM_NTASKS", "2")
        found = list(surroundings.slurm())
        assert {finding.status for finding in found} == {"ok"}
        assert one(found, "slurm").values["version"] == "22.05.8"
        text = one(found, "partitions").text
        assert text == "gpu (default): 4 nodes, limit 1-00:00:00; long: 2 nodes, limit infinite, down"
        assert "inside job 17: tasks 2" in one(found, "job").text

    def test_a_controller_that_does_not_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("sbatch", "srun"):
            program(tmp_path, name, "echo slurm 22.05.8")
        program(tmp_path, "sinfo", "echo 'slurm_load_partitions: Unable to contact' >&2; exit 1")
        finding = one(surroundings.slurm(), "partitions")
        assert finding.status == "problem"
        assert "Unable to contact" in finding.text
        program(tmp_path, "sinfo", "exec /bin/sleep 30")
        monkeypatch.setattr(surroundings, "output_of", lambda *words: findings.output_of(*words, limit_s=0.3))
        finding = one(surroundings.slurm(), "partitions")
        assert "did not answer within" in finding.text

    def test_programs_without_a_cluster(self, tmp_path: Path) -> None:
        program(tmp_path, "sbatch", "echo 'sbatch: fatal: no slurm.conf' >&2; exit 1")
        (finding,) = surroundings.slurm()
        assert finding.status == "problem"
        assert "no slurm.conf" in finding.text


class TestWandb:
    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> str:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(surroundings, "version", absent)
        (finding,) = surroundings.wandb(Errand(surroundings.reach_wandb))
        assert finding.status == "note"
        assert "pip install" in finding.advice

    def test_without_a_key_an_unreachable_server_is_no_problem(self) -> None:
        pytest.importorskip("wandb")
        found = list(surroundings.wandb(Errand(surroundings.reach_wandb)))
        assert one(found, "wandb").values["mode"] == "offline"
        assert one(found, "server").status == "note"
        assert "refused" in one(found, "server").text

    def test_with_a_key_it_is_one_and_the_key_is_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        key = "0123456789abcdef" * 3
        monkeypatch.setenv("WANDB_API_KEY", key)
        found = list(surroundings.wandb(Errand(surroundings.reach_wandb)))
        assert one(found, "wandb").values["mode"] == "online"
        assert one(found, "server").status == "problem"
        assert key[:8] not in Section("", tuple(found)).page()

    def test_online_without_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "online")
        assert one(surroundings.wandb(Errand(lambda: 0.1)), "wandb").status == "problem"

    def test_any_answer_will_do(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", server)
        assert surroundings.reach_wandb() < surroundings.SERVER_LIMIT_S

    def test_a_server_that_is_silent_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setattr(surroundings, "SERVER_LIMIT_S", 0.2)
        finding = one(surroundings.wandb(Errand(lambda: time.sleep(30) or 1.0)), "server")
        assert "no answer within" in finding.text


class TestDisk:
    def test_an_unwritable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuses(*args: Any, **kwargs: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(surroundings.tempfile, "TemporaryDirectory", refuses)
        finding = surroundings.folder("cache", tmp_path, "set XDG_CACHE_HOME")
        assert finding.status == "problem"
        assert f"{tmp_path}: cannot be written (Permission denied)" in finding.text
        assert finding.advice == "set XDG_CACHE_HOME"

    def test_a_file_in_the_place_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "outputs").write_text("")
        assert surroundings.folder("outputs", tmp_path / "outputs", "elsewhere").status == "problem"

    def test_a_disk_that_is_nearly_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class State:
            f_bavail, f_frsize, f_files, f_favail = 100, 4096, 10, 5

        monkeypatch.setattr(os, "statvfs", lambda path: State)
        finding = surroundings.folder("outputs", tmp_path / "outputs", "run elsewhere")
        assert finding.status == "problem"
        assert "too little" in finding.text
        State.f_bavail = 2**20  # 4 GiB
        assert surroundings.folder("outputs", tmp_path / "outputs", "run elsewhere").status == "note"
        State.f_bavail, State.f_favail = 2**30, 0
        assert "no inode is left" in surroundings.folder("outputs", tmp_path / "outputs", "").text

    def test_a_file_system_without_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuses(*args: Any) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuses)
        finding = surroundings.folder("outputs", tmp_path, "elsewhere")
        assert finding.values["hard_links"] is False
        assert "hard links do not work" in finding.text


class TestWeights:
    def test_missing_then_damaged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from i2i_lightning.weights.catalogue import CATALOGUE

        monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "w"))
        found = list(surroundings.metric_weights())
        assert one(found, "missing").values["names"] == list(CATALOGUE)
        name = next(iter(CATALOGUE))
        (tmp_path / "w").mkdir()
        (tmp_path / "w" / CATALOGUE[name].forms[0].file.name).write_bytes(b"short")
        finding = one(surroundings.metric_weights(), name)
        assert finding.status == "problem"
        assert finding.advice == f"i2i-weights get {name}"


class TestSpeed:
    def test_pictures_of_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import numpy as np
        from PIL import Image

        monkeypatch.setattr(speed, "LEAST_S", 0.05)
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 255, (40, 30 + index, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        (finding,) = speed.own_data(tmp_path)
        assert finding.values["pictures"] == finding.values["sampled"] == 6
        assert finding.values["decoded_per_s"] > 0
        assert finding.values["cached_per_s"] > 0

    def test_no_pictures_there(self, tmp_path: Path) -> None:
        section = examine("Speed", {"own data": lambda: speed.own_data(tmp_path)})
        assert "0 pictures there" in section.findings[0].text
        section = examine("Speed", {"own data": lambda: speed.own_data(tmp_path / "gone")})
        assert "no such folder" in section.findings[0].text

    def test_judgement(self) -> None:
        class Data:
            batch_size = 2

        def judge(loss: float, share: float) -> Finding:
            pace = {"data_wait_share": share}
            return speed._judge([{"gan": 1.0}, {"gan": loss}], 2.0, pace, Data, "cpu")  # type: ignore[arg-type]

        assert judge(1.0, 0.0).status == "ok"
        assert judge(1.0, 0.0).values["step_ms"] == 100
        assert judge(1.0, 0.0).values["images_per_s"] == 20
        assert "NOT finite: gan" in judge(float("nan"), 0.0).text
        assert judge(float("nan"), 0.0).status == "problem"
        assert "num_workers" in judge(1.0, 0.5).advice

    @pytest.mark.slow
    def test_the_probe_trains(self) -> None:
        (finding,) = doctor._probe()
        assert finding.status != "problem"
        assert finding.values["steps"] == 20
        assert finding.values["losses"].keys() >= {"generator/l1"} or finding.values["losses"]


@pytest.mark.slow
def test_the_whole_page_from_the_shell(tmp_path: Path, checkout: Path) -> None:
    command = [sys.executable, "-m", "i2i_lightning.commands.doctor"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    assert "20 steps of pix2pix" in done.stdout
    assert done.stderr == ""
