"""Run a command as a Hydra app with a help page of its own, and messages where others show tracebacks."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning import __version__
from i2i_lightning.cli import folders
from i2i_lightning.strategies.signals import Stopped, listening, received, wants_requeue

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.failures import Failures
    from i2i_lightning.cli.lock import RunLock
    from i2i_lightning.cli.record import Run

COMPLETION_FLAGS = ("-sc", "--shell-completion")

AUTO = "auto"
"""What ``resume`` is set to where the run to continue is to be found."""

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
        epochs_decide: Whether ``trainer.max_epochs`` says how long a run is, or else its data.
    """

    program: str
    config_name: str
    task: Callable[[Run], None]
    default_experiment: str | None = None
    starts: tuple[str, ...] = ("experiment", "method", "data", "resume")
    prepare: Callable[[Arguments], None] | None = None
    keeps_run: bool = True
    epochs_decide: bool = True

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line ``argv``; return the exit status.

        It is 0, or 1 on an error; 130 after Ctrl+C and 143 after SIGTERM, or 0 where SLURM starts the job
        again.
        """
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
            with listening(is_first_process()) if self.keeps_run else nullcontext():
                launch.go()
        except Stopped as stop:
            return launch.stopped(stop)
        except KeyboardInterrupt as stop:
            if is_first_process():
                print(f"\n{self.program}: stopped. {stop}".rstrip(), file=sys.stderr)
            return 130
        except Exception as error:
            if launch.failures is not None and launch.failures.include(error):
                print(f"{self.program}: {launch.failures.summary()}", file=sys.stderr)
                return 1
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
            print(f"{self.program}{rank}: {text}{launch.way_on(text)}", file=sys.stderr)
            return 1
        if launch.has_failed_jobs and launch.failures is not None:
            print(f"{self.program}: {launch.failures.summary()}", file=sys.stderr)
            return 1
        return 0

    def _hydra(self, config_name: str, words: list[str], task: Callable[[DictConfig], Any]) -> None:
        import hydra

        from i2i_lightning import config
        from i2i_lightning.cli import plugins

        config.register()
        plugins.register()
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
        self.folder: Path | None = None
        """The run folder, if an earlier run is continued or begins again."""
        self.checkpoint: Path | None = None
        self.damaged: list[Path] = []
        self.again = False
        self.lock: RunLock | None = None
        self.is_auto = False
        self.announcement = ""
        self.slip: Exception | None = None
        self.failures: Failures | None = None
        self.has_failed_jobs = False
        """The failed jobs of a sweep."""
        self._began = time.time()

    def go(self) -> None:
        from i2i_lightning.cli import arguments

        groups = folders.group_names(self.conf)
        parsed = arguments.parse(self.words, groups)
        if self.app.prepare is not None:
            self.app.prepare(parsed)
        resume = parsed.value("resume") if self.app.keeps_run else None
        self.is_auto = resume == AUTO
        if self.app.default_experiment and not self._says_what_to_run(parsed):
            experiment = f"experiment={self.app.default_experiment}"
            parsed.overrides.insert(0, experiment)
            self.announcement = f"Nothing chosen: running {experiment}. See {self.app.program} --help"
        try:
            if resume is not None and not self._submits(parsed):
                self._refuse_sweep(parsed)
                continues = self._find_unfinished if self.is_auto else self._resume
                parsed = continues(parsed, groups)
            self.overrides = parsed.overrides
            argv = parsed.hydra_argv()
            if self._submits(parsed) and not parsed.chooses_mode:
                argv.append("--multirun")  # the option says so too, but Hydra hides what is wrong beside it
            self.app._hydra(self.config_name, argv, self._job)
        finally:
            if self.lock is not None:
                self.lock.release()
        if self.slip is not None:
            raise self.slip

    def _says_what_to_run(self, parsed: Arguments) -> bool:
        from i2i_lightning.cli import arguments

        said = [arguments.split_override(word) for word in parsed.overrides]
        return any(key in self.app.starts and (key, value) != ("resume", AUTO) for key, value in said)

    @staticmethod
    def _submits(parsed: Arguments) -> bool:
        """Say whether this command only hands its words to a cluster; the jobs there find the run."""
        return parsed.value("launcher") not in (None, "local")

    @staticmethod
    def _refuse_sweep(parsed: Arguments) -> None:
        from i2i_lightning.types import UserError

        if parsed.multirun:
            raise UserError("resume: continues one run; leave out --multirun")

    def _find_unfinished(self, parsed: Arguments, groups: list[str]) -> Arguments:
        """``resume=auto``: continue the run that this command line began, if there is one.

        Where the run folder is given, or is that of a cluster's job, the run in it is meant; else the newest
        one of its name that began with the same words and is neither finished nor running.
        """
        from i2i_lightning.cli import arguments, record
        from i2i_lightning.config import launch_name
        from i2i_lightning.types import UserError

        words = [
            word
            for word in parsed.overrides
            if arguments.split_override(word)[0] not in ("resume", "launcher")
        ]
        folder = self._destination(words, parsed)
        own = [word for word in words if not word.startswith("hydra")]
        launch = launch_name()
        if parsed.value("hydra.run.dir") is None and (launch is None or launch not in folder.name):
            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise UserError(
                    "resume=auto: where processes are started one by one, say in which folder the run is: "
                    "hydra.run.dir=..."
                )
            with suppress(OSError):
                folder.rmdir()  # composing has made it, for a run that may not come to be
            found = record.unfinished_run(folder.parent, own)
        else:
            found = folder.resolve() if (folder / record.SOURCE).is_file() else None
            self.again = found is None and folder.is_dir()
        if found is not None:
            self._take(found)
            self._choose_checkpoint(found)
            if self.checkpoint is not None:
                return self._continue(found, self._changes(own, found, groups), parsed)
            self.folder, self.again = found, True
            self._announce_first(
                f"{record.shown(found)} was stopped before its first checkpoint: it begins again"
            )
            words = [word for word in words if arguments.split_override(word)[0] != "hydra.run.dir"]
            words += [f"hydra.run.dir={arguments.quote(str(found))}"]
        launcher = [word for word in parsed.overrides if arguments.split_override(word)[0] == "launcher"]
        return arguments.Arguments([*words, *launcher, "resume=null"], parsed.flags)

    def _destination(self, words: list[str], parsed: Arguments) -> Path:
        """Return the folder that Hydra would give to a run of these words."""
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        from i2i_lightning import config
        from i2i_lightning.cli import arguments

        config.register()
        flags = dict(zip(parsed.flags, [*parsed.flags[1:], ""], strict=False))
        more = next((value for flag, value in flags.items() if flag in ("--config-dir", "-cd")), None)
        if more is not None:
            place = arguments.quote(f"file://{Path(more).resolve()}")
            words = [*words, f"hydra.searchpath=[{place}]"]
        self.overrides = words
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(self.conf), version_base="1.3"):
                composed = compose(self.config_name, overrides=words, return_hydra_config=True)
                return Path(str(composed.hydra.run.dir))
        finally:
            GlobalHydra.instance().clear()

    @staticmethod
    def _changes(words: list[str], folder: Path, groups: list[str]) -> list[str]:
        """Return those of ``words`` that the run in ``folder`` did not begin with.

        Raises:
            UserError: If one of them chooses an option of a group: those stay what they were.
        """
        from i2i_lightning.cli import arguments, record
        from i2i_lightning.types import UserError

        first = record.first_overrides(folder)
        _, earlier = record.saved_config(folder)
        changed_since = {arguments.split_override(word)[0] for word in earlier}
        changes = []
        for word in words:
            key = arguments.split_override(word)[0]
            if word in first and key not in changed_since:
                continue
            if word not in first and arguments.chosen_groups([word], groups):
                raise UserError(
                    f"{word}: the run in {record.shown(folder)} was not started with this, and a resumed run "
                    "keeps its groups\ngive another hydra.run.dir for another run"
                )
            if not arguments.chosen_groups([word], groups):
                changes.append(word)
        return changes

    def _resume(self, parsed: Arguments, groups: list[str]) -> Arguments:
        """``resume=<run folder or checkpoint>``: continue that run."""
        from i2i_lightning.cli import arguments, record
        from i2i_lightning.types import UserError

        given = [word for word in parsed.overrides if arguments.split_override(word)[0] != "launcher"]
        if chosen := arguments.chosen_groups(given, groups):
            example = "trainer.max_epochs=20" if self.app.epochs_decide else "data.limit=20"
            raise UserError(
                f"{chosen[0]}: a resumed run keeps the groups it was started with; leave this out."
                f"\nSingle values may change: resume=... {example}"
            )
        folder, self.checkpoint = record.find_run(parsed.value("resume") or "")
        self._take(folder)
        if self.checkpoint is None:
            self._choose_checkpoint(folder)
        if self.checkpoint is None:
            self.again = True
            self._announce_first(
                f"{record.shown(folder)} was stopped before its first checkpoint: it begins again"
            )
        return self._continue(folder, given, parsed)

    def _take(self, folder: Path) -> None:
        """Take the run in ``folder`` as the one to continue, if it is one of this command's.

        Raises:
            UserError: If another command has begun it, or is at work on it.
        """
        from i2i_lightning.cli import record
        from i2i_lightning.cli.lock import RunLock
        from i2i_lightning.types import UserError

        program = record.program(folder)
        if program is not None and program != self.app.program:
            run = record.shown(folder)
            way = shlex.join([program, f"resume={run}"])
            raise UserError(f"resume: {run} is a run of {program}; continue it with {way}")
        if is_first_process():
            self.lock = RunLock(folder)
            self.lock.acquire()

    def _choose_checkpoint(self, folder: Path) -> None:
        """Take the newest whole checkpoint, and say so where newer ones are damaged."""
        from i2i_lightning.cli import record

        self.checkpoint, damaged = record.newest_checkpoint(folder)
        self.damaged = list(damaged)
        if damaged and self.checkpoint is not None and is_first_process():
            found = ", ".join(f"{record.shown(path)} ({wrong})" for path, wrong in damaged.items())
            print(
                f"{self.app.program}: damaged: {found}; continuing from {record.shown(self.checkpoint)}",
                file=sys.stderr,
                flush=True,
            )

    def _continue(self, folder: Path, words: list[str], parsed: Arguments) -> Arguments:
        """Turn the config of an earlier run into the root config, and its folder into this run's.

        Args:
            folder: The run folder.
            words: Overrides for it.
            parsed: The command line.
        """
        from hydra.core.config_store import ConfigStore
        from omegaconf import OmegaConf

        from i2i_lightning.cli import arguments, record
        from i2i_lightning.config import schema_name

        self.folder = folder
        saved, earlier = record.saved_config(folder)
        root = OmegaConf.merge({"defaults": [schema_name(self.app.config_name), "_self_"]}, saved)
        self.config_name = "resumed_run"
        ConfigStore.instance().store(name=self.config_name, node=root)
        given = [word for word in words if not word.startswith(("resume=", "hydra"))]
        keys = {arguments.split_override(word)[0] for word in given}
        kept = [word for word in earlier if arguments.split_override(word)[0] not in keys]
        if kept:
            self._announce_first(f"Continuing with {' '.join(kept)}, as the run was last continued")
        self.repeated = [*kept, *given]
        # Lightning starts further processes with these words: they take the same checkpoint.
        source = folder if self.checkpoint is None else self.checkpoint
        place = [
            f"resume={arguments.quote(str(source))}",
            f"hydra.run.dir={arguments.quote(str(folder))}",
            "hydra.output_subdir=null",
        ]
        quiet = [
            "hydra/job_logging=none",
            "hydra/hydra_logging=none",
            f"hydra.job.name={self.app.config_name}",
        ]
        hydra = [word for word in parsed.overrides if word.startswith("hydra")]
        return arguments.Arguments([*kept, *given, *hydra, *place, *quiet], parsed.flags)

    def way_on(self, text: str) -> str:
        """Return a line that says how to continue a run which failed with ``text``, if it came to save."""
        from i2i_lightning.cli import record

        saved = None if self.folder is None else self.folder / record.LAST_CHECKPOINT
        if self.folder is None or not is_first_process() or "resume=" in text:
            return ""
        if saved is None or not saved.is_file() or saved.stat().st_mtime < self._began:
            return ""
        return f"\n{record.how_to_continue(self.folder)}"

    def _announce_first(self, line: str) -> None:
        self.announcement = "\n".join(filter(None, (self.announcement, line)))

    def stopped(self, stop: Stopped) -> int:
        """Say that a signal ended this command, and how the run goes on; return the exit status."""
        from i2i_lightning.cli import record

        if not is_first_process():
            # Lightning, and srun, take a status other than 0 for a crash, and kill the first process, which
            # is still asking SLURM to start the job again. Its own status counts.
            return 0 if stop.agreed or wants_requeue(stop.signum) else int(stop.code)
        requeued = stop.requeued
        if not stop.agreed and wants_requeue(stop.signum):  # before training, no callback has asked for it
            from i2i_lightning.strategies.requeue import requeue

            requeued = requeue()
        how = record.how_to_continue(self.folder) if self.folder is not None else ""
        if requeued:
            how = "SLURM will start this job again, and it will go on from here"
        by = "" if stop.signum == signal.SIGINT else f" by {stop.signum.name}"
        print(f"\n{self.app.program}: stopped{by}. {how}".rstrip(), file=sys.stderr)
        return 0 if requeued else int(stop.code)

    def _job(self, config: DictConfig) -> None:
        """Check and run one composed config; Hydra calls this, once per job of a sweep."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from i2i_lightning.cli import check, failures, messages, record
        from i2i_lightning.config import SCHEMAS, sweep_folder

        hydra = HydraConfig.get()
        in_sweep = hydra.mode == RunMode.MULTIRUN
        self.debug = self.debug or config.debug is True
        continues = self.config_name != self.app.config_name
        overrides = self.repeated if continues else list(hydra.overrides.task)
        run = record.Run(
            config,
            Path(hydra.runtime.output_dir),
            shlex.join([self.app.program, *self.words]),
            overrides,
            self.checkpoint,
            started=continues,
            again=self.again,
            damaged=self.damaged,
            lock=self.lock,
        )
        if self.app.keeps_run:
            self.folder = run.folder
        self.failures = self.failures or failures.Failures(self.app.program)
        self.failures.num_jobs += 1
        try:
            if (signum := received()) is not None:  # while the job before this one came to its end
                raise Stopped(signum)
            if self.app.keeps_run and is_first_process():
                failures.forget(run.folder)
            check.check_config(config, SCHEMAS[self.app.config_name])
            quiet_others()
            if is_first_process():
                self._announce(f"Job {hydra.job.num}: {' '.join(overrides)}" if in_sweep else "")
            if self.is_auto and self.app.epochs_decide and self._is_finished(run):
                return
            self.app.task(run)
        except (Exception, Stopped) as error:
            noted = self.app.keeps_run and sweep_folder() is not None
            if noted and is_first_process() and not isinstance(error, Stopped):
                text = messages.explain(error, overrides, self.conf, self.config_name)
                if in_sweep:
                    self.failures.add(run, error, text)
                else:  # a cluster's job, which speaks for itself
                    failures.note(run.folder, overrides, text or f"{type(error).__name__}: {error}")
            elif self.app.keeps_run and not continues and not run.again and is_first_process():
                record.discard_if_empty(run)
            learns = not hydra.sweeper._target_.endswith(".BasicSweeper")
            if isinstance(error, Stopped) or (in_sweep and (learns or not is_first_process())):
                raise  # a study learns from failures, too
            # Told once the others are done, or raised again outside: in both cases past Hydra's own words.
            self.has_failed_jobs = self.has_failed_jobs or in_sweep
            self.slip = None if in_sweep else error
        finally:
            if run.lock is not None:
                run.lock.release()

    @staticmethod
    def _is_finished(run: Run) -> bool:
        """Say so if the run that was found has trained all its epochs."""
        from i2i_lightning.cli import record

        done = record.finished_epochs(run.folder) if run.checkpoint is not None else None
        if done is None or done < run.config.trainer.max_epochs:
            return False
        if is_first_process():
            print(f"{record.shown(run.folder)}: all {done} epochs are trained already")
        return True

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
    # Of spawned processes it names those it ends because another one failed, which tells for itself.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
