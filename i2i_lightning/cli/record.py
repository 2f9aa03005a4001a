"""What a run writes down about itself, and how a later run reads it back to continue.

A run folder holds ``config.yaml`` (resolved), ``environment.json`` (commit, versions, platform, command and
seed), ``.hydra/`` (the config with its interpolations, and the overrides, as Hydra would save them) and
``.lock``, which the command that trains it holds; once continued, ``resumes.jsonl`` with one line per
continuation; and once all epochs are trained, ``finished.json``.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from i2i_lightning import __version__
from i2i_lightning.cli import lock
from i2i_lightning.cli.lock import RunLock
from i2i_lightning.types import UserError

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy", "pillow")
SOURCE = Path(".hydra", "config.yaml")
OVERRIDES = SOURCE.with_name("overrides.yaml")
FINISHED = Path("finished.json")
RECORDS = {".hydra", "config.yaml", "environment.json", lock.NAME}
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")


@dataclass
class Run:
    """One job of a command: what to do, and where.

    Args:
        config: The composed and checked config.
        folder: The run folder.
        command: The command line as it was typed.
        overrides: The overrides of a new run; of a continued one, what differs from its own config.
        checkpoint: The checkpoint that the run continues from; None for a new run.
        started: Whether the records of a new run are written, and the folder thereby its own.
        again: Whether a run begins once more that was killed before its first checkpoint.
        damaged: Newer checkpoints of this run, which cannot be continued from.
        lock: Keeps other commands from this folder; None in processes other than the first.
    """

    config: DictConfig
    folder: Path
    command: str
    overrides: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    started: bool = False
    again: bool = False
    damaged: list[Path] = field(default_factory=list)
    lock: RunLock | None = None


def environment(run: Run) -> dict[str, Any]:
    """Return the circumstances of ``run`` as plain values."""
    versions = {"i2i_lightning": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": run.command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": run.config.seed,
        "git": git_state(),
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.node(),
    }


def description(run: Run) -> dict[str, Any]:
    """Return all that loggers are told about ``run``: its resolved config, and its circumstances."""
    config = cast("dict[str, Any]", OmegaConf.to_container(run.config, resolve=True, throw_on_missing=True))
    return {**config, "environment": environment(run)}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return commit, dirty flag and the size of the difference of the checkout that the package runs from.

    None if there is none.
    """
    checkout = folder or Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "dirty": bool(_git(checkout, "status", "--porcelain")),
            "diff_characters": len(_git(checkout, "diff", "HEAD")),
        }
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return None


def _git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def start(run: Run) -> None:
    """Write the records of a new run into its folder, and take its lock.

    Raises:
        UserError: If another run has begun in this folder.
    """
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    if run.lock is None:
        run.lock = RunLock(folder)
        run.lock.acquire()
    if not run.again and ((folder / SOURCE).exists() or (folder / "config.yaml").exists()):
        raise UserError(f"{shown(folder)} holds a run already. {how_to_continue(folder)}".rstrip())
    run.started = True
    facts = json.dumps(environment(run), indent=2, ensure_ascii=False)
    # Hydra itself would write these before anything is checked, over those of a run that is there already.
    # What makes the folder a run comes last: with it there is all that a resume reads.
    for name, text in (
        (Path("config.yaml"), OmegaConf.to_yaml(run.config, resolve=True)),
        (Path("environment.json"), facts + "\n"),
        (OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(run.overrides))),
        (SOURCE, OmegaConf.to_yaml(run.config)),
    ):
        write_text(folder / name, text)


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or none."""
    from i2i_lightning.checkpoints.io import write_beside  # not before it is needed: it brings torch along

    write_beside(path, text)


def tidy(run: Run) -> None:
    """Remove what killed processes left half written in a run's folder.

    A run that begins again writes its log from the beginning, too.
    """
    from i2i_lightning.checkpoints.io import remove_leftovers

    remove_leftovers(run.folder)
    if run.again:
        (run.folder / "metrics.csv").unlink(missing_ok=True)


def continued(run: Run) -> None:
    """Add a line about this continuation to the records of the run in its folder.

    From now on the run is not finished, and checkpoints that are damaged no longer have a checkpoint's name:
    the next ones would otherwise push whole ones out by them.
    """
    (run.folder / FINISHED).unlink(missing_ok=True)
    for path in run.damaged:
        if path.is_file():
            path.rename(path.with_name(f"{path.name}.damaged"))
    # A run that begins again with new records has all its overrides in there: nothing differs from them.
    overrides = [] if run.again and not run.started else run.overrides
    line = environment(run) | {"overrides": overrides}
    lines = [*_continuations(run.folder), line]
    write_text(run.folder / "resumes.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))


def _continuations(folder: Path) -> list[dict[str, Any]]:
    log = folder / "resumes.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines]


def discard_if_empty(run: Run) -> None:
    """Remove the folder of a run that died before it made anything, and parents left empty by that.

    What another run wrote into the same folder stays.
    """
    folder, own = run.folder, RECORDS if run.started else set()
    if not folder.is_dir() or any(entry.name not in own for entry in folder.iterdir()):
        return
    shutil.rmtree(folder)
    remove_empty_parents(folder)


def remove_empty_parents(folder: Path) -> None:
    """Remove those folders between the working folder and ``folder``, an absolute path, that are empty."""
    with suppress(OSError):  # one that is not empty stays, and so do those above it
        for parent in folder.parents:
            if Path.cwd() not in parent.parents:
                break
            parent.rmdir()


# How a run is continued.


def find_run(resume: str) -> tuple[Path, Path | None]:
    """Return the run folder that ``resume`` names, and the checkpoint inside of it where that is named.

    Raises:
        UserError: If there is no such run.
    """
    path = Path(resume).resolve()
    if not path.exists():
        raise UserError(f"resume={resume}: no such folder or checkpoint")
    inside = path if path.is_dir() else path.parent
    folder = next((f for f in (inside, *inside.parents) if (f / SOURCE).is_file()), None)
    if folder is None or (path.is_dir() and folder != path):
        raise UserError(
            f"resume={resume}: not a run folder, it has no .hydra/config.yaml{_runs_inside(path)}"
        )
    return folder, None if path.is_dir() else path


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the checkpoint to continue the run in ``folder`` from, and what is wrong with newer ones.

    The whole file is compared with its checksum. Without any checkpoint there is None.

    Raises:
        UserError: If there are checkpoints, and every one of them is damaged.
    """
    from i2i_lightning.checkpoints import seal

    def what_is_wrong(path: Path) -> str | None:
        try:
            return seal.what_is_wrong(path)
        except OSError as error:  # a bad sector, a lost mount: the file before it may be whole
            return f"it cannot be read: {error.strerror or error}"

    damaged: dict[Path, str] = {}
    for path in _last_checkpoints(folder):
        wrong = what_is_wrong(path)
        if wrong is None:
            return path, damaged
        damaged[path] = wrong
    if damaged:
        found = ", ".join(f"{path.name} ({wrong})" for path, wrong in damaged.items())
        kept = sorted(path for path in (folder / "checkpoints").glob("*.ckpt") if path not in damaged)
        whole = next((path for path in kept if what_is_wrong(path) is None), None)
        others = "" if whole is None else f"\nwhole is {shlex.quote(f'resume={shown(whole)}')}"
        raise UserError(f"{shown(folder)}: no checkpoint of this run is whole: {found}{others}")
    return None, damaged


def _last_checkpoints(folder: Path) -> list[Path]:
    """Return ``last.ckpt`` and those before it, the newest first."""
    found = (folder / LAST_CHECKPOINT).parent.glob("last*.ckpt")
    numbers = {path: re.fullmatch(r"last(?:_(\d+))?\.ckpt", path.name) for path in found if path.is_file()}
    return sorted(
        (path for path, match in numbers.items() if match),
        key=lambda path: int((numbers[path] or [0, 0])[1] or 0),
    )


def unfinished_run(folder: Path, overrides: Iterable[str]) -> Path | None:
    """Return the newest run in ``folder`` that began with these overrides, and is not running or finished."""
    wanted = _what_matters(overrides)
    begun = {}
    for file in folder.glob(f"*/{SOURCE}"):
        with suppress(OSError):  # another process has just thrown away a run that came to nothing
            begun[file] = file.stat().st_mtime_ns
    runs = sorted(begun, key=lambda file: begun[file], reverse=True)
    for run in (file.parent.parent for file in runs):
        same = _what_matters(first_overrides(run)) == wanted
        if same and finished_epochs(run) is None and not lock.is_running(run):
            return run
    return None


def _what_matters(overrides: Iterable[str]) -> set[str]:
    return {word for word in overrides if word.partition("=")[0] not in ("resume", "launcher")}


def first_overrides(folder: Path) -> list[str]:
    """Return the overrides that the run in ``folder`` was begun with."""
    file = folder / OVERRIDES
    return [str(word) for word in OmegaConf.load(file)] if file.is_file() else []


def program(folder: Path) -> str | None:
    """Return the console command that began the run in ``folder``; None where its record is lost."""
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        return shlex.split(facts["command"])[0]
    except (OSError, ValueError, KeyError):
        return None


def finish(run: Run, epochs: int) -> None:
    """Record that a run has trained all its ``epochs``."""
    line = {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "epochs": epochs}
    write_text(run.folder / FINISHED, json.dumps(line) + "\n")


def finished_epochs(folder: Path) -> int | None:
    """Return how many epochs the run in ``folder`` was finished after; None if it is not."""
    try:
        return int(json.loads((folder / FINISHED).read_text(encoding="utf-8"))["epochs"])
    except (OSError, ValueError, KeyError):
        return None


def _runs_inside(folder: Path) -> str:
    runs = (
        sorted(file.parent.parent for file in folder.glob("*/.hydra/config.yaml")) if folder.is_dir() else []
    )
    return f". Its newest run is {shown(runs[-1])}" if runs else ""


def saved_config(folder: Path) -> tuple[DictConfig, list[str]]:
    """Return the config of the run in ``folder``, and the overrides of its last continuation.

    The config still has its interpolations: ``trainer.max_epochs=20`` must reach the schedule too.
    """
    config = cast(DictConfig, OmegaConf.load(folder / SOURCE))
    lines = _continuations(folder)
    return config, lines[-1]["overrides"] if lines else []


def shown(path: Path) -> str:
    """Return ``path`` as a person in the working folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def how_to_continue(folder: Path) -> str:
    """Return the words that continue the run in ``folder``, or nothing if it has no checkpoint yet."""
    has_checkpoint = bool(_last_checkpoints(folder))
    return f"Continue with {shlex.quote(f'resume={shown(folder)}')}" if has_checkpoint else ""
