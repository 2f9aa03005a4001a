"""Hydra's sweeper of a study by Optuna: each job is a trial.

The study lies in the sweep's folder, so that the same command line continues it, after a crash as well. A
trial's number is its job's number and the name of its run folder; its value is a figure that the run wrote
there, so that it does not matter where the job ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from i2i_lightning.cli.study import Study, options_of, worded
from i2i_lightning.types import UserError

if TYPE_CHECKING:
    import optuna


class OptunaSweeper(Sweeper):
    """Ask a study for values, let the launcher run them, tell the study what came of it.

    A job that fails is a failed trial, and the study goes on; so is one whose process was killed, and its
    values are tried again first thing when the study is continued.

    Args:
        max_batch_size: Nothing here: ``sweep.at_once`` says how many jobs the launcher is given.
        params: The search space: key to a sweep in Hydra's grammar, such as ``tag(log, interval(1, 100))`` or
            ``choice(batch, instance)``. Sweeps in the command line come beside it, or in its place.
    """

    config: DictConfig
    launcher: Launcher
    hydra_context: HydraContext

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over."""
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has as many as it is to have.

        Raises:
            UserError: If Optuna is missing, the space is wrong, or every trial has failed.
        """
        from i2i_lightning.callbacks.trial import MISSING
        from i2i_lightning.checkpoints.io import write_beside

        try:
            import optuna
        except ImportError as error:
            raise UserError(MISSING) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options = options_of(self.config)
        space, fixed = self._space(arguments)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_beside(folder / "multirun.yaml", lambda path: OmegaConf.save(self.config, path))
        study = Study(folder.absolute(), options, space, fixed)
        with study:
            study.begin()
            while batch := study.ask(options.at_once):
                for first, jobs in _in_a_row(batch):
                    try:
                        returned = self.launcher.launch([study.words(trial) for trial in jobs], first)
                    except Exception as error:
                        # No job can be composed or started; the next ones would fail as well.
                        for trial in jobs:
                            study.fail(trial, worded(error))
                        raise
                    for trial, result in zip(jobs, returned, strict=True):
                        study.tell(trial, result)
            study.end()

    def _space(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return Optuna's distribution of each key, and the overrides that all jobs share."""
        words = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words += arguments  # which say the last word
        parsed = {override.get_key_element(): override for override in parser.parse_overrides(words)}
        space = {key: distribution(word) for key, word in parsed.items() if word.is_sweep_override()}
        fixed = [
            f"{key}={word.get_value_element_as_str()}" if word.input_line and "=" in word.input_line else key
            for key, word in parsed.items()
            if not word.is_sweep_override()
        ]
        if not space:
            raise UserError(
                "sweep=optuna: nothing to choose; give a space, such as 'loss.lambda_l1=interval(1,100)'"
            )
        return space, fixed


def distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """Return the distribution that a sweep in Hydra's grammar means.

    ``a,b`` and ``choice(a,b)`` are categories; ``range(1,10,2)`` and ``interval(0.1,1)`` numbers, on a
    logarithmic scale with ``tag(log, ...)``; ``int(interval(1,8))`` whole ones.

    Raises:
        UserError: If it means none.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    key, value = override.get_key_element(), override.value()
    try:
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            ends: tuple[Any, Any] = (value.start, value.end)
            if all(isinstance(end, int) for end in ends):
                return IntDistribution(*ends, log=log)
            return FloatDistribution(float(ends[0]), float(ends[1]), log=log)
        if isinstance(value, RangeSweep):
            values = list(value.range())  # which ends before its stop
            if all(isinstance(x, int) for x in values):
                return IntDistribution(values[0], values[-1], step=int(value.step))
            return FloatDistribution(values[0], values[-1], step=float(value.step))
        # As text: so they go back into an override.
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(f"{key}: not a range of numbers to search: {error}") from error


def _in_a_row(trials: Sequence[optuna.trial.Trial]) -> Iterator[tuple[int, list[optuna.trial.Trial]]]:
    """Yield trials whose numbers follow each other, with the first number: so a launcher counts its jobs.

    Another process on the same study may have taken the numbers in between.
    """
    for _, group in itertools.groupby(enumerate(trials), key=lambda pair: pair[1].number - pair[0]):
        jobs = [trial for _, trial in group]
        yield jobs[0].number, jobs
