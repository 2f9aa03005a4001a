"""A study by Optuna in the folder of its sweep: what it asks for, and what it is told.

What the study learns outlives the process that asked: it is written down after every trial, and several
processes may work on it at once.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from i2i_lightning.cli.lock import RunLock, is_running
from i2i_lightning.cli.slurm.jobs import is_under_way
from i2i_lightning.sweeps.directions import better
from i2i_lightning.sweeps.runs import STUDY, read_run
from i2i_lightning.types import UserError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import TrialState

JOURNAL = "study.journal"
BEST = "best.yaml"
WORKER = "worker"
"""Attribute of a trial: the process that runs it, and holds the lock of that name."""
RETRY_OF = "begun_again_for"
"""Attribute of a trial: the number of the one whose process died."""
REASON = "reason"
"""Attribute of a trial: why it failed."""
WORKERS = "workers"
"""Folder of the locks by which processes on a study tell the living from the dead."""

TURN = "turn.lock"
"""Held by the process that looks at the trials and adds to them: one at a time."""
MONITOR = "monitor"
"""Attribute of a study: its figure."""

DIRECTIONS = {"lower": "minimize", "higher": "maximize"}


@dataclass(frozen=True)
class StudyOptions:
    """How a study chooses its trials; the keys of ``sweep``.

    Args:
        study: Its name, and that of its folder.
        monitor: Figure to optimise: a column ``val/...`` or ``perf/...`` of ``metrics.csv`` (its newest
            value), or one of ``report.json`` as ``i2i-sweep-report`` calls it (``judge_iou``).
        direction: minimize or maximize; None where it is known of the figure.
        trials: Trials of the whole study, those of earlier commands included.
        storage: None for a journal in the sweep's folder, or a database's address (``sqlite:///file.db``).
        sampler: tpe or random.
        sampler_startup_trials: Trials drawn at random before ``tpe`` looks at what they gave.
        seed: Seed of the sampler. A continued study goes on as it would have without the pause.
        at_once: Jobs given to the launcher at a time.
        pruner: median or halving; None prunes nothing.
        pruner_startup_trials: Trials that ``median`` lets finish before it stops any.
        pruner_warmup_epochs: Epochs of each trial that are not judged.
        trial: Number of the trial that a job is; set by the sweeper.

    Raises:
        UserError: If an option is not among those above.
    """

    study: str
    monitor: str
    direction: str | None
    trials: int
    storage: str | None
    sampler: str
    sampler_startup_trials: int
    seed: int
    at_once: int
    pruner: str | None
    pruner_startup_trials: int
    pruner_warmup_epochs: int
    trial: int | None

    def __post_init__(self) -> None:
        for key in ("trials", "at_once"):
            if getattr(self, key) < 1:
                raise UserError(f"sweep.{key}={getattr(self, key)}: give at least 1")
        if self.sampler not in ("tpe", "random"):
            raise UserError(f"sweep.sampler={self.sampler}: give tpe or random")
        if self.pruner not in ("median", "halving", None):
            raise UserError(f"sweep.pruner={self.pruner}: give median, halving or null")
        if self.direction not in ("minimize", "maximize", None):
            raise UserError(f"sweep.direction={self.direction}: give minimize or maximize")
        kind, slash, _ = self.monitor.partition("/")
        if slash and kind not in ("val", "test", "perf"):
            raise UserError(
                f"sweep.monitor={self.monitor}: give what validation measures (val/l1), perf/..., or a "
                "figure of the report (judge_iou)"
            )
        known = DIRECTIONS.get(str(better(self.monitor)))
        if self.direction is not None and known is not None and self.direction != known:
            raise UserError(
                f"sweep.direction={self.direction} would look for the worst {self.monitor}: give {known}"
            )
        if self.direction is None and known is None:
            raise UserError(
                f"sweep.monitor={self.monitor}: nobody knows which way is better; "
                "give sweep.direction=minimize or maximize"
            )

    @property
    def wanted(self) -> Literal["minimize", "maximize"]:
        """Which way the figure is to go: ``minimize`` or ``maximize``."""
        direction = self.direction or DIRECTIONS[str(better(self.monitor))]
        return "minimize" if direction == "minimize" else "maximize"


def options_of(config: DictConfig) -> StudyOptions:
    """Return the options of the study under ``sweep``, checked.

    Raises:
        UserError: If one of them is wrong.
    """
    from i2i_lightning.cli.check import describe, fits

    values = cast("dict[str, Any]", OmegaConf.to_container(config.sweep, resolve=True))
    hints = {"study": str, "monitor": str, "trials": int, "seed": int, "at_once": int, "trial": int | None}
    for key, hint in hints.items():
        if not fits(values.get(key), hint):
            raise UserError(f"sweep.{key}={values.get(key)!r}: give {describe(hint)}")
    return StudyOptions(**values)


def trial_report(config: DictConfig, sweep_folder: Path) -> Any:
    """Return the callback by which a run is a trial of the study that ``sweep`` describes.

    Args:
        config: The run's config.
        sweep_folder: Folder of the study, above the run's own.
    """
    from i2i_lightning.callbacks.trial import TrialReport

    options = options_of(config)
    assert options.trial is not None
    return TrialReport(
        storage=options.storage or str(sweep_folder / JOURNAL),
        study=options.study,
        trial=options.trial,
        monitor=options.monitor,
        pruner=options.pruner,
        pruner_startup_trials=options.pruner_startup_trials,
        pruner_warmup_epochs=options.pruner_warmup_epochs,
    )


class Study:
    """A study in its folder, and this process's part in it."""

    def __init__(
        self, folder: Path, options: StudyOptions, space: Mapping[str, Any], fixed: Sequence[str]
    ) -> None:
        import optuna

        from i2i_lightning.callbacks.trial import FolderLock, make_pruner, open_storage

        self.folder, self.options, self.space, self.fixed = folder, options, dict(space), list(fixed)
        self.worker = uuid.uuid4().hex[:12]
        self._turn = FolderLock(folder / TURN)
        self._lock = RunLock(folder / WORKERS / self.worker)
        self.failed: list[int] = []
        """Trials of this process that failed."""
        try:
            self.study = optuna.create_study(
                study_name=options.study,
                storage=open_storage(options.storage or str(folder / JOURNAL)),
                direction=options.wanted,
                pruner=make_pruner(
                    options.pruner, options.pruner_startup_trials, options.pruner_warmup_epochs
                ),
                load_if_exists=True,
            )
        except ValueError as error:
            raise UserError(f"sweep.study={options.study}: {error}") from error
        if self.study.direction.name.lower() != options.wanted:
            raise UserError(
                f"sweep.study={options.study}: its figure is to be {self.study.direction.name.lower()}d, and "
                f"{options.monitor} {options.wanted}d; give sweep.study another name"
            )
        monitor = self.study.user_attrs.get(MONITOR, options.monitor)
        if monitor != options.monitor:
            raise UserError(
                f"sweep.monitor={options.monitor}: study {options.study} is about {monitor}; "
                "give sweep.study another name"
            )
        self.study.set_user_attr(MONITOR, monitor)
        for trial in self.study.get_trials(deepcopy=False):
            for key in self.space.keys() & trial.distributions.keys():
                try:
                    optuna.distributions.check_distribution_compatibility(
                        trial.distributions[key], self.space[key]
                    )
                except ValueError as error:
                    raise UserError(
                        f"{key}: its values are not those that trial {trial.number} of study {options.study} "
                        "was drawn from; give sweep.study another name"
                    ) from error

    def __enter__(self) -> Study:
        self._lock.folder.mkdir(parents=True)
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        shutil.rmtree(self._lock.folder, ignore_errors=True)
        self.write()

    # -------------------- trials

    def begin(self) -> None:
        """Settle what dead processes left running, and say what there is already.

        A job of SLURM does not need the process that submitted it. One that is still under way is left to
        itself, and one that has ended since is told to the study.
        """
        from optuna.trial import TrialState

        from i2i_lightning.callbacks.trial import held

        again, alone = [], []
        with held(self._turn):
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                worker, folder = trial.user_attrs.get(WORKER), self.folder / str(trial.number)
                if worker is not None and is_running(self.folder / WORKERS / worker):
                    continue
                shutil.rmtree(self.folder / WORKERS / str(worker), ignore_errors=True)
                if is_running(folder) or is_under_way(self.folder, folder):
                    alone.append(trial.number)
                elif self._result(trial)[0] is not None:
                    self._settle(trial.number, *self._result(trial))
                else:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
                    again.append(trial.number)
        done = len(self._counted())
        if done:
            lost = f"; begun again, because their process was killed: {_list(again)}" if again else ""
            lost += f"; still under way, and told when the study is next continued: {_list(alone)}" * bool(
                alone
            )
            study, wanted = self.options.study, self.options.trials
            print(f"Study {study}: {done} of {wanted} trials are there{lost}", flush=True)
        self.write()

    def _result(self, trial: optuna.trial.FrozenTrial) -> tuple[TrialState | None, float | None]:
        """Return how the run of a trial ended and its figure, as its folder tells; None if it has not."""
        from optuna.trial import TrialState

        from i2i_lightning.callbacks.trial import PRUNED

        run = read_run(self.folder / str(trial.number), self.folder)
        value = run.metrics.get(self.options.monitor)
        if PRUNED in trial.user_attrs:
            return TrialState.PRUNED, None
        if run.state == "finished" and value is not None and math.isfinite(value):
            return TrialState.COMPLETE, value
        return None, None

    def _settle(self, number: int, state: TrialState | None, value: float | None) -> None:
        from optuna.trial import TrialState

        if state is TrialState.COMPLETE:
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=state)

    def _counted(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that count: all but those that wait, and those that were begun again."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        return [t for t in trials if t.state != TrialState.WAITING and t.number not in replaced]

    def ask(self, number: int) -> list[optuna.trial.Trial]:
        """Return the next trials, at most ``number``; none where the study is complete."""
        from i2i_lightning.callbacks.trial import held

        trials: list[optuna.trial.Trial] = []
        with held(self._turn):
            while len(trials) < number and len(self._counted()) < self.options.trials:
                # Seeded anew for each trial by its number: a study that was interrupted goes on as it would
                # have.
                self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
                trial = self.study.ask(self.space)
                trial.set_user_attr(WORKER, self.worker)
                trials.append(trial)
        self.write()
        return trials

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import numpy as np
        from optuna import samplers

        seed = int(np.random.SeedSequence([self.options.seed, number]).generate_state(1)[0])
        if self.options.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=self.options.sampler_startup_trials)

    def words(self, trial: optuna.trial.Trial) -> list[str]:
        """Return the overrides of a trial's job."""
        return [*self._repeatable(trial.params), f"sweep.trial={trial.number}"]

    def _repeatable(self, params: Mapping[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={_shown(value)}" for key, value in params.items())]

    def tell(self, trial: optuna.trial.Trial, returned: JobReturn) -> None:
        """Tell the study how a trial went."""
        from optuna.trial import TrialState

        from i2i_lightning.callbacks.trial import PRUNED

        run = read_run(self.folder / str(trial.number), self.folder)
        value = run.metrics.get(self.options.monitor)
        stored = self.study.get_trials(deepcopy=False)[trial.number]
        if returned.status != JobStatus.COMPLETED:
            reason = run.reason if run.state == "failed" else worded(returned._return_value)
        elif PRUNED in stored.user_attrs:
            self.study.tell(trial, state=TrialState.PRUNED)
            reason = ""
        elif value is None or not math.isfinite(value):
            there = ", ".join(sorted(run.metrics)) or "none"
            reason = f"the run wrote no {self.options.monitor}; there is: {there}"
        else:
            self.study.tell(trial, value)
            reason = ""
        if reason:
            self.fail(trial, reason)
        self._say(trial.number)
        self.write()

    def fail(self, trial: optuna.trial.Trial, reason: str) -> None:
        """Note that a trial failed, and why."""
        from optuna.trial import TrialState

        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)
        self.failed.append(trial.number)

    def _say(self, number: int) -> None:
        trial = self.study.get_trials(deepcopy=False)[number]
        text = f"Trial {number}: {trial.state.name.lower()}"
        if trial.value is not None:
            text += f", {self.options.monitor} {trial.value:.6g}"
            text += " (the best so far)" if self._best() == number else ""
        print(f"{text}{': ' + trial.user_attrs[REASON] if REASON in trial.user_attrs else ''}", flush=True)

    def _best(self) -> int | None:
        from optuna.trial import TrialState

        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1 if self.options.wanted == "minimize" else -1
        return min(done, key=lambda trial: sign * float(trial.value or 0.0)).number if done else None

    # -------------------- what it leaves

    def write(self) -> None:
        """Write the trials down for people and reports, and the best one with the command that repeats it."""
        from i2i_lightning.checkpoints.io import write_beside

        trials = self.study.get_trials(deepcopy=False)
        record = {
            "study": self.options.study,
            "monitor": self.options.monitor,
            "direction": self.options.wanted,
            "trials_wanted": self.options.trials,
            "best": self._best(),
            "trials": [
                {
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    "value": trial.value,
                    "params": trial.params,
                    "reason": trial.user_attrs.get(REASON, ""),
                    "begun_again_for": trial.user_attrs.get(RETRY_OF),
                }
                for trial in trials
            ],
        }
        text = json.dumps(record, indent=1) + "\n"
        write_beside(self.folder / STUDY, text)
        best = self._best()
        if best is None:
            return
        trial = trials[best]
        words = [word for word in self._repeatable(trial.params) if not word.startswith(("sweep=", "sweep."))]
        found = {
            "trial": best,
            self.options.monitor: trial.value,
            "params": trial.params,
            "command": shlex.join(["i2i-train", *words]),
            "folder": str(self.folder / str(best)),
        }
        yaml = OmegaConf.to_yaml(OmegaConf.create(found))
        write_beside(self.folder / BEST, yaml)

    def end(self) -> None:
        """Say what the best trial is, and which ones failed.

        Raises:
            UserError: If this process ran trials, and every one of them failed.
        """
        best = self._best()
        if best is None and self.failed:
            last = f"{self._last_reason()}\nits folder: {self.folder / str(self.failed[-1])}"
            raise UserError(f"every trial failed; the last one: {last}")
        if best is None:
            raise UserError(f"study {self.options.study}: no trial has a value")
        trial = self.study.get_trials(deepcopy=False)[best]
        print(
            f"Best of {len(self._counted())} trials: {best}, {self.options.monitor} {trial.value:.6g}; "
            f"the command that repeats it: {self.folder / BEST}",
            flush=True,
        )
        if self.failed:
            print(f"Failed trials: {_list(self.failed)}, in folders of these names", flush=True)

    def _last_reason(self) -> str:
        return str(self.study.get_trials(deepcopy=False)[self.failed[-1]].user_attrs.get(REASON, ""))


def _shown(value: Any) -> str:
    """Return a value as an override holds it; a category is text of Hydra's grammar already."""
    return repr(value) if isinstance(value, float) else str(value)


def worded(error: object) -> str:
    """Return what an error says, in a line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
