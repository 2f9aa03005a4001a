"""What a run writes down about itself, and how a later run reads it back to continue.

A run folder holds ``config.yaml`` (resolved), ``environment.json`` (commit, versions, platform, command and
seed), ``.hydra/`` (the config with its interpolations, and the overrides, as Hydra would save them) and, once
continued, ``resumes.jsonl`` with one line per continuation.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from i2i_lightning import __version__
from i2i_lightning.types import UserError

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "numpy", "pillow")
SOURCE = Path(".hydra", "config.yaml")
RECORDS = {".hydra", "config.yaml", "environment.json"}
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
    """

    config: DictConfig
    folder: Path
    command: str
    overrides: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    started: bool = False


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


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return commit and dirty flag of the checkout that the package runs from; None if there is none."""
    checkout = folder or Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(checkout, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return None


def _git(checkout: Path, *words: str) -> str:
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def start(run: Run) -> None:
    """Write the records of a new run into its folder.

    Raises:
        UserError: If another run has begun in this folder.
    """
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(run.config, resolve=True))
    except FileExistsError as error:
        raise UserError(f"{shown(folder)} holds a run already. {how_to_continue(folder)}".rstrip()) from error
    run.started = True
    text = json.dumps(environment(run), indent=2, ensure_ascii=False)
    (folder / "environment.json").write_text(text + "\n", encoding="utf-8")
    # Hydra itself would write these before anything is checked, over those of a run that is there already.
    (folder / SOURCE).parent.mkdir(exist_ok=True)
    (folder / SOURCE).write_text(OmegaConf.to_yaml(run.config), encoding="utf-8")
    overrides = OmegaConf.to_yaml(OmegaConf.create(run.overrides))
    (folder / SOURCE).with_name("overrides.yaml").write_text(overrides, encoding="utf-8")


def continued(run: Run) -> None:
    """Add a line about this continuation to the records of the run in its folder."""
    line = environment(run) | {"overrides": run.overrides}
    with (run.folder / "resumes.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def discard_if_empty(run: Run) -> None:
    """Remove the folder of a run that died before it made anything, and parents left empty by that.

    What another run wrote into the same folder stays.
    """
    folder, own = run.folder, RECORDS if run.started else set()
    if not folder.is_dir() or any(entry.name not in own for entry in folder.iterdir()):
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if Path.cwd() not in parent.parents or any(parent.iterdir()):
            break
        parent.rmdir()


# How a run is continued.


def find_run(resume: str) -> tuple[Path, Path]:
    """Return run folder and checkpoint that ``resume`` names: a run folder, or a checkpoint inside of one.

    Raises:
        UserError: If there is no such run, or it has no checkpoint yet.
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
    checkpoint = folder / LAST_CHECKPOINT if path.is_dir() else path
    if not checkpoint.is_file():
        raise UserError(
            f"resume={resume}: no {LAST_CHECKPOINT} in it; this run stopped before its first checkpoint"
        )
    return folder, checkpoint


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
    log = folder / "resumes.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return config, json.loads(lines[-1])["overrides"] if lines else []


def shown(path: Path) -> str:
    """Return ``path`` as a person in the working folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def how_to_continue(folder: Path) -> str:
    """Return the words that continue the run in ``folder``, or nothing if it has no checkpoint yet."""
    has_checkpoint = (folder / LAST_CHECKPOINT).is_file()
    return f"Continue with {shlex.quote(f'resume={shown(folder)}')}" if has_checkpoint else ""
