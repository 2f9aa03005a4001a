"""The command line: help, completion, file names, messages for slips, records, resume."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from i2i_lightning import __version__
from i2i_lightning.cli import arguments, messages, record
from i2i_lightning.cli.app import App
from i2i_lightning.cli.help import default_choices, page
from i2i_lightning.cli.record import Run
from i2i_lightning.commands.train import APP
from i2i_lightning.types import UserError

ODD = "odd (1) [a,b]=é 'q\" {x}; 日本 100% #~"
TINY = [
    "data=paired",
    "data.load_px=40",
    "data.crop_px=32",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "generator.base_channels=2",
    "discriminator.base_channels=2",
    "discriminator.num_layers=1",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    monkeypatch.delenv("I2I_DEBUG", raising=False)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    root = tmp_path / ODD
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
    return root


Stub = Callable[..., tuple[int, list[Run]]]


@pytest.fixture
def stub() -> Stub:
    """Run the app with a task that only keeps what it was given, or raises ``error``."""

    def run(*words: str, error: BaseException | None = None) -> tuple[int, list[Run]]:
        seen: list[Run] = []

        def task(job: Run) -> None:
            seen.append(job)
            if error is not None:
                raise error

        app = App("i2i-train", "train", task, "pix2pix_toy")
        return app.main(words), seen

    return run


# Help, version, completion.


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )


MAIN = "import sys; from i2i_lightning.commands.train import APP; status = APP.main(); "
LOADED = (
    "print('loaded', {'torch', 'lightning', 'hydra'} & set(sys.modules), file=sys.stderr); sys.exit(status)"
)


def test_help_is_quick_and_complete(conf: Path) -> None:
    began = time.perf_counter()
    done = python(MAIN + LOADED, "--help")
    assert time.perf_counter() - began < 2
    assert "loaded set()" in done.stderr
    groups = default_choices(conf / "train.yaml")
    for path in conf.glob("*/*.yaml"):
        if path.parent.name in groups:
            assert path.stem in done.stdout, path
    for needed in (
        "usage: i2i-train",
        "unet*",
        "optimizer.lr=2e-4",
        "loss.lambda_l1=100",
        "--multirun",
        "-sc install",
    ):
        assert needed in done.stdout
    assert done.stdout.count("  i2i-train") >= 5
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_every_group_is_in_the_help_of_a_command(conf: Path) -> None:
    pages = {root.stem: page(f"i2i-{root.stem}", root.stem, None, conf) for root in conf.glob("*.yaml")}
    for folder in (path for path in conf.iterdir() if path.is_dir() and path.name != "stage"):  # in presets
        names = [path.stem for path in folder.glob("*.yaml")]
        shown = [text for text in pages.values() if f"  {folder.name}=" in text]
        assert any(all(name in text for name in names) for text in shown), folder
    assert "Presets:" in pages["invert"]
    assert "  method=" not in pages["invert"], "method=pix2pix inverts nothing"
    assert max(map(len, pages["invert"].splitlines())) <= 110


@pytest.mark.parametrize("command", ["evaluate", "translate", "convert"])
def test_other_commands_explain_themselves(command: str) -> None:
    main = MAIN.replace("commands.train", f"commands.{command}")
    done = python(main + LOADED, "--help")
    assert "loaded set()" in done.stderr
    usage, more = f"usage: i2i-{command}", f"  i2i-{command} --cfg job"
    for needed in (usage, "checkpoint=", "output=", "Examples:", more):
        assert needed in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
    for words in re.findall(rf"i2i-{command} (--help \S+)", done.stdout):
        assert "conf/" in python(main + "sys.exit(status)", *words.split()).stdout


def test_help_on_an_option_and_on_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert APP.main(["--help", "method=pix2pix"]) == 0
    assert "_target_: i2i_lightning.methods.pix2pix.Pix2Pix" in capsys.readouterr().out
    assert APP.main(["scheduler", "-h"]) == 0
    assert "scheduler=cosine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("methd", "methd: no such group. Did you mean method?"),
        ("generator=unet_25", "generator=unet_25: no such option. Did you mean unet_256?"),
    ],
)
def test_help_names_a_slip(topic: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert APP.main(["--help", topic]) == 1
    assert message in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert APP.main(["--version"]) == 0
    assert capsys.readouterr().out == f"i2i_lightning {__version__}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("generator=unet_1", "generator=unet_128"),
        ("loss.lambda_", "loss.lambda_l1="),
        ("experiment=pix2pix_f", "experiment=pix2pix_facades"),
        ("data=paired data.dir", "data.direction="),
    ],
)
def test_completion(line: str, offered: str) -> None:
    line = f"i2i-train {line}"
    heavy = "print('loaded', {'torch', 'lightning'} & set(sys.modules), file=sys.stderr)"
    done = python(MAIN + heavy, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert offered in done.stdout.split()
    assert "loaded set()" in done.stderr


# File names.


def test_quote_survives_hydras_grammar() -> None:
    parser = OverridesParser.create()
    letters = list("ab ,=[](){}'\"\\:;~é日#%@!&*?|<>/.-_\t")
    random.seed(0)
    for _ in range(500):
        text = "".join(random.choices(letters, k=random.randint(1, 9)))
        quoted = arguments.quote(text)
        assert parser.parse_override(f"key={quoted}").value() == text
        assert arguments.is_quoted(quoted)
        assert arguments.unquote(quoted) == text


@pytest.mark.parametrize(
    "name", [ODD, "a,b", "a=b", "(x)", "[x]", "{x: 1}", "it's", "back\\slash\\", " lead", "null.d"]
)
@pytest.mark.parametrize("key", ["data.root", "data.cache_dir", "data.folder_a", "warm_start"])
def test_file_names_arrive_as_typed(name: str, key: str) -> None:
    parsed = arguments.parse([f"{key}={name}"], [])
    assert parsed.value(key) == name
    override = OverridesParser.create().parse_override(parsed.overrides[0])
    assert str(override.value()) == name
    again = arguments.parse(parsed.overrides, [])  # further ranks start from the prepared words
    assert again.overrides == parsed.overrides


def test_file_names_of_hydra_pass_through(tmp_path: Path) -> None:
    def overrides(*words: str) -> list[str]:
        return arguments.parse(list(words), []).overrides

    assert overrides("resume=null", "data.root='a b'") == ["resume=null", "data.root='a b'"]
    assert overrides("data.root=~/x") == [f"data.root='{Path.home()}/x'"]
    assert overrides("-m", "data.root=a,b") == ["data.root='a','b'"]
    (tmp_path / "a,b").mkdir()
    assert overrides("-m", "data.root=a,b") == ["data.root='a,b'"]
    assert overrides("-m", "data.root=choice(a,b)") == ["data.root=choice(a,b)"]
    assert overrides("data.preprocess=crop", "name=x") == ["data.preprocess=crop", "name=x"]


def test_odd_folder_reaches_the_config(stub: Stub, pairs: Path) -> None:
    status, (run,) = stub("data=paired", f"data.root={pairs}", "hydra.run.dir=out, (2)")
    assert status == 0
    assert run.config.data.root == str(pairs)
    assert run.folder.name == "out, (2)"


# Messages.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "generator=unett",
            "generator=unett: no such option. Did you mean unet?\ngenerator: encoder_decoder, resnet_6,",
        ),
        ("experiment=pix2pix_facade", "Did you mean pix2pix_facades?"),
        ("gen=unet", "gen: no such key. Did you mean generator?"),
        ("methd=pix2pix", "methd: no such key. Did you mean method?"),
        (
            "loss.lambda_l11=5",
            "loss.lambda_l11: no such key. Did you mean loss.lambda_l1?\nloss has: gan_mode,",
        ),
        ("lambda_l1=5", "lambda_l1: no such key. Did you mean loss.lambda_l1?"),
        ("max_epochs=3", "max_epochs: no such key. Did you mean trainer.max_epochs?"),
        ("callbacks.gallry=null", "callbacks.gallry: no such key. Did you mean callbacks.gallery?"),
        ("+loss.lambda_l11=5", "loss.lambda_l11: no such key. Did you mean loss.lambda_l1?"),
        ("seed=abc", "seed=abc: give a whole number"),
        ("debug=maybe", "debug=maybe: give true or false"),
        ("loss.lambda_l1=abc", "loss.lambda_l1='abc': give a number"),
        (
            "name=a,b",
            "name=a,b: several values mean a sweep; add --multirun, or quote one value: \"name='a,b'\"",
        ),
        ("name=a=b", "name=a=b: cannot read this value; quote text that holds"),
        ("~nothing", "nothing: no such key"),
        ("hydra.run.dirr=x", "hydra.run.dirr=x: Hydra has no such setting"),
        ("trainer.max_epochs", "trainer.max_epochs: settings are written key=value"),
        ("trainer.max_epochs = 3", "trainer.max_epochs: settings are written key=value"),
        (
            "--max-epochs=3",
            "--max-epochs=3: no such flag; settings are written key=value, without dashes: max_epochs=3",
        ),
        ("--multirn", "--multirn: no such flag. Did you mean --multirun?"),
        ("--cfg jobb", "--cfg jobb: give one of job, hydra, all"),
        ("--cfg", "--cfg: give one of job, hydra, all"),
        ("resume=nowhere", "resume=nowhere: no such folder or checkpoint"),
        ("trainer=cpu trainer.max_epochs=x", "trainer.max_epochs='x': give a whole number or null"),
        ("generator.num_downs=???", "generator.num_downs: missing; give it a value"),
    ],
)
def test_slips(
    words: str, message: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, seen = stub(*words.split())
    printed = capsys.readouterr()
    assert status == 1
    assert not seen
    assert message in printed.err
    assert printed.err.startswith("i2i-train: ")
    assert 1 <= len(printed.err.splitlines()) <= 3
    assert not list(tmp_path.iterdir()), "a slip leaves nothing behind"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamda: 3", "conf/experiment/mine.yaml: lamda: no such key. Did you mean loss.lambda_l1?"),
        ("trainr: {max_epochs: 3}", "Did you mean trainer?"),
        ("seed: abc", "conf/experiment/mine.yaml: seed: "),
        ("loss: {lambda_11: 3}", "loss.lambda_11: no such key. Did you mean loss.lambda_l1?"),
        ("loss: {lambda_l1: three}", "loss.lambda_l1='three': give a number"),
        (
            "callbacks: {galery: {num_samples: 2}}",
            "callbacks.galery: no such key. Did you mean callbacks.gallery?",
        ),
        (
            "defaults: [override /generator: unt]",
            "generator=unt: no such option (asked for by a config file). Did you mean unet?",
        ),
        ("defaults: [override /genrator: unet]", "genrator"),
        ("name: [", "mine.yaml, line 3: not valid YAML"),
    ],
)
def test_slips_in_an_experiment(
    text: str, message: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{text}\n")
    status, _ = stub("--config-dir", str(tmp_path / "own"), "experiment=mine")
    printed = capsys.readouterr().err
    assert status == 1
    assert message in printed
    assert 1 <= len(printed.splitlines()) <= 3
    assert "Traceback" not in printed


def test_slips_while_running(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = stub(error=UserError("data.root=x: no such folder"))
    printed = capsys.readouterr()
    assert status == 1
    assert printed.err == "i2i-train: data.root=x: no such folder\n"
    assert "running experiment=pix2pix_toy" in printed.out
    assert not (tmp_path / "outputs" / "pix2pix_toy").exists()


def test_a_machine_that_refuses_is_no_bug(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = stub(error=PermissionError(errno.EACCES, "Permission denied", "/somewhere"))
    assert status == 1
    assert capsys.readouterr().err == "i2i-train: /somewhere: Permission denied\n"


def test_a_gpu_that_is_not_there(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert APP.main([*TINY, f"data.root={pairs}", "trainer=gpu"]) == 1
    assert "torch finds no GPU on this machine; take trainer=cpu" in capsys.readouterr().err


def test_bugs_show_their_traceback(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        stub(error=ZeroDivisionError())
    assert "looks like a bug" in capsys.readouterr().err


@pytest.mark.parametrize("switch", ["word", "environment"])
def test_debug_shows_the_traceback_of_a_slip(
    switch: str, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if switch == "environment":
        monkeypatch.setenv("I2I_DEBUG", "1")
    words = ["debug=true"] if switch == "word" else []
    with pytest.raises(UserError):
        stub(*words, error=UserError("slip"))


def test_interrupt_is_polite(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = stub(error=KeyboardInterrupt("Continue with resume=x"))
    assert status == 130
    assert capsys.readouterr().err.strip() == "i2i-train: stopped. Continue with resume=x"


def test_trim_keeps_three_short_lines() -> None:
    text = messages.trim("a\n\nfull_key: x\n    object_type=dict\nb\n" + "c" * 1000 + "\nd")
    assert text.splitlines()[:2] == ["a", "b"]
    assert len(text.splitlines()) == 3
    assert len(text.splitlines()[2]) == messages.MAX_LINE_LENGTH


# What runs.


def test_default_experiment_only_where_nothing_is_chosen(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stub("seed=3")[1][0].config.name == "pix2pix_toy"
    assert "Nothing chosen" in capsys.readouterr().out
    assert stub("method=pix2pix")[1][0].config.name == "pix2pix"
    assert stub("data=toyfaces")[1][0].config.name == "pix2pix"
    assert capsys.readouterr().out == ""


def test_multirun_runs_every_job(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, runs = stub("method=pix2pix", "--multirun", "loss.lambda_l1=10,100", "name=sweep")
    assert status == 0
    assert [run.config.loss.lambda_l1 for run in runs] == [10, 100]
    assert [run.folder.name for run in runs] == ["0", "1"]
    assert "Job 1: method=pix2pix loss.lambda_l1=100 name=sweep" in capsys.readouterr().out
    assert runs[0].folder.parent.parent == tmp_path / "outputs" / "sweep" / "multirun"


def test_multirun_over_all_options_of_a_name(stub: Stub) -> None:
    status, runs = stub("method=pix2pix", "--multirun", "discriminator=glob(patchgan*)", "seed=range(1,3)")
    assert status == 0
    chosen = [(run.config.discriminator.num_layers, run.config.seed) for run in runs]
    assert chosen == [(layers, seed) for layers in (3, 1, 5) for seed in (1, 2)]


def test_multirun_reports_a_failed_job(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = stub("--multirun", "seed=1,2", error=UserError("data.root=x: no such folder"))
    assert status == 1
    said = capsys.readouterr().err
    assert "i2i-train: job 1 failed: data.root=x: no such folder" in said
    assert "i2i-train: 2 of 2 jobs failed:\n" in said


def test_cfg_prints_and_makes_nothing(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, seen = stub("--cfg", "job", "generator=resnet_6", "--resolve")
    assert (status, seen) == (0, [])
    assert yaml.safe_load(capsys.readouterr().out)["method"]["generator"]["num_blocks"] == 6
    assert not list(tmp_path.iterdir())


# Records.


def test_records_of_a_run(stub: Stub, tmp_path: Path) -> None:
    _, (run,) = stub("data=paired", f"data.root={ODD}", "seed=5")
    record.start(run)
    resolved = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["method"]["generator"]["num_downs"] == 8
    assert resolved["data"]["root"] == ODD
    facts = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    assert facts["seed"] == 5
    assert facts["command"].startswith("i2i-train data=paired ")
    assert {"python", "torch", "lightning", "hydra-core", "i2i_lightning"} <= set(facts["versions"])
    assert "git" in facts
    assert run.folder.parent == tmp_path / "outputs" / "pix2pix"
    with pytest.raises(UserError, match="holds a run already"):
        record.start(run)


def test_git_state_knows_commit_and_dirt(tmp_path: Path) -> None:
    assert record.git_state(tmp_path) is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert record.git_state(tmp_path) is None
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    commit = ["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, check=True)
    state = record.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "new").touch()
    assert record.git_state(tmp_path) == state | {"dirty": True}


def test_a_slip_leaves_the_runs_of_others_alone(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    _, (run,) = stub("method=pix2pix", "hydra.run.dir=here")
    record.start(run)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    stub("method=pix2pix", "hydra.run.dir=here", "loss.lambda_l1=3", error=UserError("slip"))
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


# Training, resuming.


def trained(*words: str) -> Path:
    before = set(Path().glob("outputs/*/*"))
    assert APP.main([*TINY, *words]) == 0
    (folder,) = set(Path().glob("outputs/*/*")) - before
    return folder


def epochs(folder: Path) -> int:
    import torch

    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]) + 1


def test_train_and_resume(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(f"data.root={pairs}", "name='a (b), c=d'")
    assert capsys.readouterr().out.rstrip().endswith(f"Gallery: {folder / 'index.html'}")
    records = {
        "config.yaml",
        "environment.json",
        ".hydra",
        "checkpoints",
        "metrics.csv",
        "index.html",
        "images",
    }
    assert records <= {entry.name for entry in folder.iterdir()}
    config = (folder / "config.yaml").read_bytes()

    assert APP.main([f"resume={folder}", "trainer.max_epochs=3"]) == 0
    assert epochs(folder) == 3
    assert APP.main([f"resume={folder}"]) == 0
    assert "All 3 epochs are trained already" in capsys.readouterr().out
    assert APP.main([f"resume={folder}", "data.root=nowhere", "trainer.max_epochs=9"]) == 1
    assert APP.main([f"resume={folder / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=4"]) == 0
    assert epochs(folder) == 4
    assert set(Path().glob("outputs/*/*")) == {folder}, "a resumed run goes on in its own folder"
    assert (folder / "config.yaml").read_bytes() == config
    lines = (folder / "resumes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["overrides"] for line in lines] == [
        ["trainer.max_epochs=3"],
        ["trainer.max_epochs=4"],
    ]


def test_resume_names_slips(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(f"data.root={pairs}")
    for words, message in [
        (["generator=resnet_6"], "generator=resnet_6: a resumed run keeps the groups it was started with"),
        (["--multirun"], "resume: continues one run"),
        (["loss.lambda_l11=3"], "loss.lambda_l11: no such key. Did you mean loss.lambda_l1?"),
        (["data.rooot=x"], "data.rooot: no such key. Did you mean data.root?"),
    ]:
        assert APP.main([f"resume={folder}", *words]) == 1
        assert message in capsys.readouterr().err
    assert APP.main([f"resume={folder.parent}"]) == 1
    assert f"Its newest run is {folder}" in capsys.readouterr().err
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert APP.main([f"resume={folder}"]) == 0
    assert f"{folder} was stopped before its first checkpoint: it begins again" in capsys.readouterr().out


def test_warm_start_loads_the_weights(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(f"data.root={pairs}", "name=first")
    trained(f"data.root={pairs}", "name=second", f"warm_start={folder / 'checkpoints' / 'last.ckpt'}")
    assert APP.main([*TINY, f"data.root={pairs}", "warm_start=nowhere.ckpt"]) == 1
    assert "nowhere.ckpt: no such checkpoint file" in capsys.readouterr().err


def test_wrong_rate_is_a_slip(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert APP.main([*TINY, f"data.root={pairs}", "optimizer.lr=-1"]) == 1
    assert "optimizer: Invalid learning rate: -1" in capsys.readouterr().err
    assert not Path("outputs/pix2pix").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_resumes(pairs: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "i2i_lightning.commands.train",
        *TINY,
        f"data.root={pairs}",
        "trainer.max_epochs=9999",
    ]
    # A suite that a shell started in the background ignores interrupts, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not list(Path().glob("outputs/*/*/checkpoints/last.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    (folder,) = Path().glob("outputs/*/*")
    assert process.returncode == 130
    assert f"i2i-train: stopped. Continue with resume={folder}" in errors
    assert "Traceback" not in errors
    done = epochs(folder)
    assert APP.main([f"resume={folder}", f"trainer.max_epochs={done + 1}"]) == 0
    assert epochs(folder) == done + 1


@pytest.mark.ddp
def test_two_processes_share_one_run_folder(pairs: Path) -> None:
    words = [
        *TINY,
        f"data.root={pairs}",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "name=a b",
    ]
    command = [sys.executable, "-m", "i2i_lightning.commands.train"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = Path().glob("outputs/*/*")
    assert done.stdout.count("Gallery:") == 1
    resumed = [*command, f"resume={folder}", "trainer.max_epochs=2"]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert epochs(folder) == 2
    assert len((folder / "resumes.jsonl").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.ddp
def test_a_sweep_over_processes_is_refused(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.root={pairs}", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    assert APP.main([*TINY, *words, "--multirun", "seed=1,2"]) == 1
    assert "trainer.devices=2: each process would run the whole sweep again" in capsys.readouterr().err
