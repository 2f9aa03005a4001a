"""Run a command as a Hydra app with a help page of its own, and messages where others show tracebacks."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning import __version__
from i2i_lightning.cli import folders

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.record import Run

COMPLETION_FLAGS = ("-sc", "--shell-completion")

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Environment variables that are 0 in the first of several processes: torchrun's, Lightning's, SLURM's."""

HARMLESS_WARNINGS = (
    r".*does not have many workers",  # with the images in memory, workers would only slow the loader down
    r".*is smaller than the logging interval",  # our curves count batches across epochs
    r".*LeafSpec",  # Lightning's own use of a deprecated name
    r".*srun.* command is available",
    r".*Attribute .* is an instance of `nn.Module` and is already saved",
)


@dataclass(frozen=True)
class App:
    """A console command over a root config.

    Args:
        program: Name of the console command.
        config_name: Name of its root config, ``conf/<config_name>.yaml``.
        task: What to run, once its config is composed and checked.
        default_experiment: Experiment to run where the command line chooses none of ``starts``.
        starts: Keys that say what to run.
        prepare: Called with the command line before it is composed: makes known what the config refers to.
        keeps_run: Whether each job has a run folder of its own, with records in it.
    """

    program: str
    config_name: str
    task: Callable[[Run], None]
    default_experiment: str | None = None
    starts: tuple[str, ...] = ("experiment", "method", "data", "resume")
    prepare: Callable[[Arguments], None] | None = None
    keeps_run: bool = True

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line ``argv``; return the exit status: 0, 1 on an error, 130 when interrupted."""
        words = list(sys.argv[1:] if argv is None else argv)
        if "--help" in words or "-h" in words:
            from i2i_lightning.cli import help as help_page

            return help_page.show(self.program, self.config_name, self.default_experiment, words)
        if "--version" in words:
            print(f"i2i_lightning {__version__}")
            return 0
        if any(flag in words for flag in COMPLETION_FLAGS):
            self._hydra(self.config_name, words, lambda config: None)
            return 0
        return self._run_reporting(words)

    def _run_reporting(self, words: list[str]) -> int:
        launch = _Launch(self, words)
        try:
            launch.go()
        except KeyboardInterrupt as stop:
            if is_first_process():
                print(f"\n{self.program}: stopped. {stop}".rstrip(), file=sys.stderr)
            return 130
        except Exception as error:
            if launch.debug:
                raise
            from i2i_lightning.cli import messages

            text = messages.explain(error, launch.overrides, launch.conf, launch.config_name)
            if text is None:
                print(
                    "This looks like a bug, not a slip of yours; please report it with the lines below.",
                    file=sys.stderr,
                )
                raise
            rank = "" if is_first_process() else f" (rank {os.environ.get('LOCAL_RANK')})"
            print(f"{self.program}{rank}: {text}", file=sys.stderr)
            return 1
        return 0

    def _hydra(self, config_name: str, words: list[str], task: Callable[[DictConfig], Any]) -> None:
        import hydra

        from i2i_lightning import config

        config.register()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us, who print it
        run = hydra.main(version_base="1.3", config_path=str(folders.conf_dir()), config_name=config_name)(
            task
        )
        before = sys.argv
        # Hydra reads these words, and Lightning starts further processes with them.
        sys.argv = [before[0] if before else self.program, *words]
        try:
            run()
        finally:
            sys.argv = before


class _Launch:
    """One pass through Hydra: arguments, composition, checks, the task itself."""

    def __init__(self, app: App, words: list[str]) -> None:
        self.app = app
        self.words = words
        self.conf = folders.conf_dir()
        self.config_name = app.config_name
        self.debug = os.environ.get("I2I_DEBUG", "0") not in ("", "0") or "debug=true" in words
        self.overrides: list[str] = []
        """Overrides in force, for messages."""
        self.repeated: list[str] = []
        """Those of them that a continuation of this run repeats."""
        self.checkpoint: Path | None = None
        self.announcement = ""
        self.slip: Exception | None = None

    def go(self) -> None:
        from i2i_lightning.cli import arguments

        groups = folders.group_names(self.conf)
        parsed = arguments.parse(self.words, groups)
        if self.app.prepare is not None:
            self.app.prepare(parsed)
        if self.app.keeps_run and parsed.value("resume") is not None:
            parsed = self._resume(parsed, groups)
        elif self.app.default_experiment and not self._says_what_to_run(parsed):
            experiment = f"experiment={self.app.default_experiment}"
            parsed.overrides.insert(0, experiment)
            self.announcement = f"Nothing chosen: running {experiment}. See {self.app.program} --help"
        self.overrides = parsed.overrides
        self.app._hydra(self.config_name, parsed.hydra_argv(), self._job)
        if self.slip is not None:
            raise self.slip

    def _says_what_to_run(self, parsed: Arguments) -> bool:
        from i2i_lightning.cli import arguments

        return any(arguments.split_override(word)[0] in self.app.starts for word in parsed.overrides)

    def _resume(self, parsed: Arguments, groups: list[str]) -> Arguments:
        """Turn the config of an earlier run into the root config, and its folder into this run's."""
        from hydra.core.config_store import ConfigStore
        from omegaconf import OmegaConf

        from i2i_lightning.cli import arguments, record
        from i2i_lightning.types import UserError

        if parsed.multirun:
            raise UserError("resume: continues one run; leave out --multirun")
        if chosen := arguments.chosen_groups(parsed.overrides, groups):
            raise UserError(
                f"{chosen[0]}: a resumed run keeps the groups it was started with; leave this out."
                "\nSingle values may change: resume=... trainer.max_epochs=20"
            )
        folder, self.checkpoint = record.find_run(parsed.value("resume") or "")
        saved, earlier = record.saved_config(folder)
        root = OmegaConf.merge({"defaults": ["run_config", "_self_"]}, saved)
        self.config_name = "resumed_run"
        ConfigStore.instance().store(name=self.config_name, node=root)
        given = [word for word in parsed.overrides if not word.startswith(("resume=", "hydra"))]
        keys = {arguments.split_override(word)[0] for word in given}
        kept = [word for word in earlier if arguments.split_override(word)[0] not in keys]
        if kept:
            self.announcement = f"Continuing with {' '.join(kept)}, as the run was last continued"
        self.repeated = [*kept, *given]
        output = [f"hydra.run.dir={arguments.quote(str(folder))}", "hydra.output_subdir=null"]
        quiet = [
            "hydra/job_logging=none",
            "hydra/hydra_logging=none",
            f"hydra.job.name={self.app.config_name}",
        ]
        return arguments.Arguments([*kept, *parsed.overrides, *output, *quiet], parsed.flags)

    def _job(self, config: DictConfig) -> None:
        """Check and run one composed config; Hydra calls this, once per job of a sweep."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from i2i_lightning.cli import check, record
        from i2i_lightning.config import SCHEMAS

        hydra = HydraConfig.get()
        in_sweep = hydra.mode == RunMode.MULTIRUN
        self.debug = self.debug or config.debug is True
        overrides = list(hydra.overrides.task) if self.checkpoint is None else self.repeated
        command = shlex.join([self.app.program, *self.words])
        run = record.Run(config, Path(hydra.runtime.output_dir), command, overrides, self.checkpoint)
        try:
            check.check_config(config, SCHEMAS[self.app.config_name])
            quiet_others()
            if is_first_process():
                self._announce(f"Job {hydra.job.num}: {' '.join(overrides)}" if in_sweep else "")
            self.app.task(run)
        except Exception as error:
            if self.app.keeps_run and self.checkpoint is None and is_first_process():
                record.discard_if_empty(run)
            if in_sweep:
                raise  # sweepers count failures
            self.slip = error  # raised again outside, past Hydra's own words on it

    def _announce(self, job: str) -> None:
        for line in filter(None, (self.announcement, job)):
            print(line, flush=True)
        self.announcement = ""


def is_first_process() -> bool:
    """Return whether this process is the one that talks and writes: rank 0, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def quiet_others() -> None:
    """Hide what Lightning says that no user of ours can act on; real warnings stay visible."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
