"""``launcher=slurm`` without SLURM: the batch script, each job's words, what is made of SLURM's answers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from i2i_lightning.cli.slurm import jobs as slurm_jobs
from i2i_lightning.cli.slurm.jobs import Job, Watch, parse_jobs
from i2i_lightning.cli.slurm.launcher import SlurmLauncher, fit_to_tasks, job_words
from i2i_lightning.cli.slurm.script import SlurmOptions, batch_script
from i2i_lightning.commands.train import APP
from i2i_lightning.types import UserError

TINY = ["experiment=pix2pix_toy", "data.crop_px=32", "trainer=cpu"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


Programs = Callable[..., None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Put shell scripts in front of the path, by name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(**texts: str) -> None:
        for name, text in texts.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)

    return install


@pytest.fixture
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def script_of(printed: str) -> Path:
    (line,) = (line for line in printed.splitlines() if line.startswith("Batch script, not submitted: "))
    return Path(line.partition(": ")[2])


def directives(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[name] = "".join(shlex.split(value))
    return found


# The whole way: a command line that submits nothing.


@pytest.mark.usefixtures("without_slurm")
def test_dry_run_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "launcher=slurm", "launcher.dry_run=true", "launcher.time='1:30:00'", "launcher.nodes=2"]
    words += ["launcher.gpus_per_node=4", "launcher.memory=16G", "launcher.setup=[module load cuda]"]
    words += ["launcher.partition=gpu", "launcher.account=123", "launcher.constraint='a100&nvlink'"]
    words += ["launcher.cpus_per_task=3", "launcher.additional={mail-type: FAIL, exclusive: true}"]
    words += ["launcher.container='apptainer exec --nv x.sif'", "launcher.signal_seconds=300"]
    assert APP.main(words) == 0
    script = script_of(capsys.readouterr().out)
    text = script.read_text()
    sweep = script.parents[1]
    assert sweep.parent == tmp_path / "outputs" / "pix2pix_toy" / "multirun"
    assert directives(text) == {
        "account": "123",
        "chdir": str(tmp_path),
        "constraint": "a100&nvlink",
        "cpus-per-task": "3",
        "exclusive": "",
        "gpus-per-node": "4",
        "job-name": "pix2pix_toy",
        "mail-type": "FAIL",
        "mem": "16G",
        "nodes": "2",
        "ntasks-per-node": "4",
        "open-mode": "append",
        "output": f"{script.parent}/%j_0_log.out",
        "partition": "gpu",
        "requeue": "",
        "signal": "USR1@300",
        "time": "1:30:00",
    }
    lines = text.splitlines()
    assert lines.index("module load cuda") < lines.index("# The command line of each job.")
    (srun,) = (line for line in lines if line.startswith("srun "))
    assert srun.endswith('apptainer exec --nv x.sif python -u -m i2i_lightning.commands.train "${words[@]}"')
    for option in ("--kill-on-bad-exit=1", "--open-mode=append", "--cpus-per-task=3"):
        assert option in srun.split()
    subprocess.run(["/bin/bash", "-n", str(script)], check=True)
    (job,) = words_in(script)
    own = [*TINY, "trainer.devices=4", "trainer.num_nodes=2", "launcher=local", "hydra.mode=RUN"]
    assert job == [*own, f"hydra.run.dir='{sweep}/0'", "resume=auto"]


def words_in(script: Path, count: int = 1) -> list[list[str]]:
    """Let the shell say what the script's words are, for each element of the array."""
    text = script.read_text()
    case = text[text.index('case "$') : text.index("esac") + 4]
    found = []
    for index in range(count):
        command = f"SLURM_ARRAY_TASK_ID={index}\n{case}\nprintf '%s\\n' \"${{words[@]}}\""
        done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=True)
        found.append(done.stdout.splitlines())
    return found


@pytest.mark.usefixtures("without_slurm")
def test_dry_run_of_a_sweep_is_one_array(capsys: pytest.CaptureFixture[str]) -> None:
    """Without -m: the option says itself that there are jobs to submit."""
    odd = "name='it is (odd) $HOME'"
    words = [*TINY, odd, "seed=1,2,3", "launcher=slurm", "launcher.dry_run=true"]
    assert APP.main([*words, "launcher.array_parallelism=2"]) == 0
    script = script_of(capsys.readouterr().out)
    said = directives(script.read_text())
    assert said["array"] == "0-2%2"
    assert said["output"] == f"{script.parent}/%A_%a_0_log.out"
    assert said["job-name"] == "it is (odd) $HOME"
    jobs = words_in(script, 3)
    for index, job in enumerate(jobs):
        folder = f"{script.parents[1]}/{index}"
        own = [*TINY, odd, f"seed={index + 1}", "launcher=local", "hydra.mode=RUN"]
        assert job == [*own, f"hydra.run.dir='{folder}'", "resume=auto"]


@pytest.mark.usefixtures("without_slurm")
def test_needs_sbatch(capsys: pytest.CaptureFixture[str]) -> None:
    assert APP.main([*TINY, "launcher=slurm"]) == 1
    assert "launcher=slurm: there is no sbatch on this machine" in capsys.readouterr().err


@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launcher.nodess=2"], "launcher.nodess: no such key. Did you mean launcher.nodes?"),
        (["launcher.nodes=two"], "launcher.nodes='two': give a whole number"),
        (["launcher.nodes=0"], "launcher.nodes=0: give at least 1"),
        (["trainer=multi_node"], "trainer.num_nodes=2 with launcher.nodes=1: give launcher.nodes=2"),
        (["trainer.devices=2", "launcher.tasks_per_node=3"], "give launcher.tasks_per_node=2"),
        (["launcher.tasks_per_node=3", "launcher.gpus_per_node=2"], "each task drives one GPU"),
        (["optimizer.lr=fast", "seed=1,2"], "optimizer.lr='fast': give a number"),
    ],
)
def test_slips_are_told_before_the_queue(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert APP.main([*TINY, "launcher=slurm", "launcher.dry_run=true", *words]) == 1
    assert message in capsys.readouterr().err


# What a job runs.


def test_words_of_a_job(tmp_path: Path) -> None:
    given = ["method=pix2pix", "launcher=slurm", "launcher.nodes=2", "trainer.devices=auto"]
    fit = ["trainer.devices=2", "trainer.num_nodes=1"]
    of_hydra = ["hydra.sweep.dir=x", "hydra/launcher=basic", "hydra.mode=MULTIRUN", "hydra.searchpath=[a]"]
    flags = ["--config-dir", "more", "-m"]
    words = job_words(given, tmp_path / "0", fit, of_hydra, ["method=pix2pix", *flags])
    assert words == [
        "method=pix2pix",
        "trainer.devices=auto",
        "trainer.num_nodes=1",
        "hydra.searchpath=[a]",
        "launcher=local",
        "hydra.mode=RUN",
        f"hydra.run.dir='{tmp_path}/0'",
        "resume=auto",
        "--config-dir",
        "more",
    ]


@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize("words", [[], ["resume=auto"]])
def test_a_job_that_is_to_go_on_by_itself_has_its_folder(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a sweep, too: its jobs must not sweep once more."""
    given = ["experiment=pix2pix_toy", "sweep=pix2pix_losses", *words]
    assert APP.main([*given, "launcher=slurm", "launcher.dry_run=true"]) == 0
    script = script_of(capsys.readouterr().out)
    for index, job in enumerate(words_in(script, 5)):
        assert job.count("resume=auto") == 1
        assert "hydra.mode=RUN" in job
        assert f"hydra.run.dir='{script.parents[1]}/{index}'" in job


@pytest.mark.usefixtures("without_slurm")
def test_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "hydra.run.dir=runs/a", "resume=auto", "launcher=slurm", "launcher.dry_run=true"]
    assert APP.main(words) == 0
    (job,) = words_in(script_of(capsys.readouterr().out))
    assert f"hydra.run.dir='{tmp_path}/runs/a'" in job
    assert APP.main([*words, "seed=1,2"]) == 1
    assert "hydra.run.dir: a sweep has several jobs; give hydra.sweep.dir" in capsys.readouterr().err


def test_words_of_a_job_that_goes_on(tmp_path: Path) -> None:
    """A run that is named has its folder and its groups already."""
    words = job_words(["resume=old", "launcher=slurm"], tmp_path, ["trainer.devices=2"], [], [])
    assert words == ["resume=old", "trainer.devices=2"]


def test_one_task_may_start_processes_of_its_own() -> None:
    config = OmegaConf.create({"trainer": {"devices": 4, "num_nodes": 1}})
    assert fit_to_tasks(config, SlurmOptions()) == []
    assert fit_to_tasks(config, SlurmOptions(gpus_per_node=4)) == ["trainer.devices=4", "trainer.num_nodes=1"]


# The batch script, run by hand with a stand-in for srun.


def run_script(tmp_path: Path, options: SlurmOptions, **environment: str) -> tuple[int, Path]:
    logs = tmp_path / "100% logs"
    logs.mkdir()
    script = tmp_path / "script.sh"
    script.write_text(batch_script([["seed=1"], ["name='a b'", "seed=2"]], options, "x", logs))
    job = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", str(script)], env=os.environ | job | environment, timeout=30)
    return done.returncode, logs


def test_script_passes_the_exit_status_on(tmp_path: Path, programs: Programs) -> None:
    programs(srun=f'printf "%s\\n" "$@" >{tmp_path}/words; exit 7')
    status, logs = run_script(tmp_path, SlurmOptions(python="/opt/a b/python"))
    assert status == 7
    assert (logs / "11_1_exit").read_text() == "7\n"
    words = (tmp_path / "words").read_text().splitlines()
    assert words[words.index("--output") + 1] == f"{tmp_path}/100%% logs/%A_%a_%t_log.out"
    command = ["/opt/a b/python", "-u", "-m", "i2i_lightning.commands.train", "name='a b'", "seed=2"]
    assert words[-len(command) :] == command


def test_script_requeues_for_a_container(tmp_path: Path, programs: Programs) -> None:
    programs(srun='touch "$I2I_REQUEUE_FILE"', scontrol=f'echo "$@" >>{tmp_path}/asked')
    status, logs = run_script(tmp_path, SlurmOptions())
    assert status == 0
    assert (tmp_path / "asked").read_text() == "requeue 11_1\n"
    assert list(logs.iterdir()) == []


def test_default_interpreter_is_this_one(tmp_path: Path) -> None:
    text = batch_script([["seed=1"]], SlurmOptions(), "x", tmp_path)
    assert f"{sys.executable} -u -m i2i_lightning" in text
    assert "wckey" not in text
    assert "--array" not in text
    unsure = SlurmOptions(additional={"requeue": False, "comment": None, "nice": 5})
    said = directives(batch_script([["seed=1"]], unsure, "x", tmp_path))
    assert said["nice"] == "5"
    assert not {"requeue", "comment"} & set(said)


# Jobs in SLURM's hands, with stand-ins for its programs.

ARRAY = """\
JobId=13 ArrayJobId=12 ArrayTaskId=1 JobName=x JobState=RUNNING Reason=None ExitCode=0:0 NodeList=n[1-2]
JobId=12 ArrayJobId=12 ArrayTaskId=2-3,7%2 JobName=x JobState=PENDING Reason=JobArrayTaskLimit Restarts=0
"""


def test_parse_jobs() -> None:
    found = parse_jobs(ARRAY)
    assert {name: facts["JobState"] for name, facts in found.items()} == {
        "12_1": "RUNNING",
        "12_2": "PENDING",
        "12_3": "PENDING",
        "12_7": "PENDING",
    }
    assert found["12_1"]["NodeList"] == "n[1-2]"
    assert set(parse_jobs("JobId=5 JobState=COMPLETED\n")) == {"5"}
    assert parse_jobs("") == {}


def scripted(tmp_path: Path, *answers: str) -> str:
    """Return a scontrol that gives one answer after the other, and then keeps to the last."""
    for number, answer in enumerate(answers):
        (tmp_path / f"answer{number}").write_text(answer)
    return (
        f"cd {tmp_path}; count=$(cat count 2>/dev/null || echo 0); last={len(answers) - 1}\n"
        "echo $((count + 1)) >count; [ $count -gt $last ] && count=$last\n"
        "grep -q ^error answer$count && { cat answer$count >&2; exit 1; }; cat answer$count"
    )


def line(state: str, more: str = "", job: str = "12") -> str:
    return f"JobId={job} JobName=x JobState={state} Restarts=0 {more}\n"


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_jobs, "SLOWEST_POLL_S", 0.0)


@pytest.mark.usefixtures("no_pause")
def test_a_failed_job_is_reported(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command fails as well, and names the log; a state is said once."""
    states = [line("PENDING", "Reason=Priority"), line("PENDING", "Reason=Priority")]
    states += [line("RUNNING", "NodeList=n1"), line("FAILED", "ExitCode=1:0")]
    programs(sbatch="echo 12", scontrol=scripted(tmp_path, *states))
    logs = tmp_path / "sweep" / "slurm"
    logs.mkdir(parents=True)
    log = logs / "12_0_log.out"
    log.write_text("Seed set to 0\ni2i-train: data.root=x: no such folder\nsrun: error: n1: task 0: Exited\n")
    assert APP.main([*TINY, "launcher=slurm", f"hydra.sweep.dir={tmp_path}/sweep"]) == 1
    printed = capsys.readouterr()
    said = [words for words in printed.out.splitlines() if words.startswith("Job 12: ")]
    failed = f"FAILED, exit status 1: i2i-train: data.root=x: no such folder; log: {log}"
    assert [words.removeprefix("Job 12: ") for words in said] == [
        f"submitted: {' '.join(TINY)}; log: {log}",
        "PENDING (Priority)",
        "RUNNING on n1",
        failed,
    ]
    assert "i2i-train: job 12: FAILED, exit status 1\n" in printed.err
    assert f"its log: {log}\n" in printed.err


@pytest.mark.usefixtures("no_pause")
def test_a_job_may_look_dead_on_its_way_back(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    again = "JobId=12 JobState=PENDING Reason=BeginTime Restarts=1\n"
    lost = "error: slurm_load_jobs: Unable to contact slurm controller\n"
    programs(scontrol=scripted(tmp_path, line("NODE_FAIL"), again, lost, lost, line("COMPLETED")))
    Watch([Job([], tmp_path, [], "", "12", tmp_path)]).wait()
    assert capsys.readouterr().out.splitlines() == [
        "Job 12: PENDING (BeginTime, back in the queue, restart 1)",
        "SLURM does not answer; asking again: error: slurm_load_jobs: Unable to contact slurm controller",
        "Job 12: COMPLETED",
    ]


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize(
    ("note", "state", "said"),
    [
        ("0\n", "COMPLETED", "COMPLETED"),
        ("3\n", "FAILED", "FAILED, exit status 3"),
        (None, "CANCELLED", "killed before it could say how it ended"),
    ],
)
def test_a_job_that_slurm_forgot_is_not_waited_for(
    note: str | None,
    state: str,
    said: str,
    tmp_path: Path,
    programs: Programs,
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs(scontrol=scripted(tmp_path, "error: slurm_load_jobs error: Invalid job id specified\n"))
    if note is not None:
        (tmp_path / "12_exit").write_text(note)
    job = Job([], tmp_path, [], "", "12", tmp_path)
    Watch([job]).wait()
    assert job.state == state
    assert job.has_failed == (state != "COMPLETED")
    assert said in capsys.readouterr().out


def test_without_waiting(tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    programs(sbatch="echo '12;cluster'; env >env", scontrol="exit 1")
    assert APP.main([*TINY, "seed=1,2", "launcher=slurm", "launcher.wait=false"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [words.partition("; log: ")[0] for words in said] == [
        f"Job 12_{index}: submitted: {' '.join(TINY)} seed={index + 1}" for index in (0, 1)
    ]
    assert said[1].endswith("/slurm/12_1_0_log.out")


def test_slurms_own_words_where_it_refuses(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    programs(sbatch="echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    assert APP.main([*TINY, "launcher=slurm", "launcher.partition=gpu"]) == 1
    said = capsys.readouterr().err
    assert "launcher=slurm: sbatch: error: invalid partition specified: gpu\n" in said
    assert "the batch script: /" in said


def test_a_job_submits_no_traces_of_itself(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(sbatch="env >seen; echo 12")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "1", "SLURM_CONF": "c"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "script.sh").touch()
    slurm_jobs.submit(tmp_path / "script.sh", [Job([], tmp_path, [], "")], tmp_path)
    seen = [words for words in (tmp_path / "seen").read_text().splitlines() if words.startswith("SLURM")]
    assert seen == ["SLURM_CONF=c"]


def test_a_sweep_that_learns_needs_results() -> None:
    launcher = SlurmLauncher()
    launcher.config = OmegaConf.create({"hydra": {"sweeper": {"_target_": "x.OptunaSweeper"}}})
    launcher._check_sweeper(SlurmOptions())
    for options in (SlurmOptions(wait=False), SlurmOptions(dry_run=True)):
        with pytest.raises(
            UserError, match="this sweep chooses its next jobs by what the last ones returned"
        ):
            launcher._check_sweeper(options)
