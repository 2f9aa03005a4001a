"""Hydra's view of SLURM: a launcher that is given the overrides of jobs, and returns how they went.

Each job is the ordinary command line again, started by ``srun`` in a folder that is settled here. So its exit
status is the job's, and a job that SLURM starts once more finds its folder and goes on.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from i2i_lightning.cli import arguments
from i2i_lightning.cli.record import write_text
from i2i_lightning.cli.slurm.jobs import LOGS, Job, Watch, submit
from i2i_lightning.cli.slurm.script import SlurmOptions, batch_script
from i2i_lightning.types import UserError

OF_THIS_COMMAND = re.compile(r"hydra[./](run|sweep|sweeper|launcher|mode|output_subdir)\b|hydra\.job\.")
"""Overrides of Hydra's own settings that are about submitting, not about the jobs."""

RUN_DIR = "hydra.run.dir"
RUN_FLAGS = ("-m", "--multirun", "-r", "--run")


class SlurmLauncher(Launcher):
    """Hydra's launcher of that name: it is given the overrides of some jobs, and returns how they went."""

    config: DictConfig
    hydra_context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over. The task is not called here: the jobs run the command line."""
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit jobs; wait for them where ``launcher.wait`` says so.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: Number of the first one in its sweep.

        Raises:
            UserError: If a job's config is wrong, or SLURM is not there or does not take the jobs.
        """
        from hydra.utils import instantiate

        own_folder = any(_key(word) == RUN_DIR for word in self.config.hydra.overrides.hydra)
        if own_folder and (len(job_overrides) > 1 or initial_job_idx):
            raise UserError(
                f"{RUN_DIR}: a sweep has several jobs; give hydra.sweep.dir, the folder of them all"
            )
        composed = [
            self._compose(list(overrides), initial_job_idx + index, own_folder)
            for index, overrides in enumerate(job_overrides)
        ]
        options: SlurmOptions = instantiate(self.config.launcher, _convert_="all")
        if not options.dry_run and shutil.which("sbatch") is None:
            raise UserError(
                "launcher=slurm: there is no sbatch on this machine, hence no SLURM"
                "\nlauncher.dry_run=true writes the batch script alone; launcher=local runs here"
            )
        self._check_sweeper(options)
        jobs = [
            self._job(list(overrides), folder, fit_to_tasks(config, options))
            for overrides, (config, folder) in zip(job_overrides, composed, strict=True)
        ]
        sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        logs = sweep / LOGS
        logs.mkdir(parents=True, exist_ok=True)
        script = logs / f"submission_{initial_job_idx}.sh"
        text = batch_script([job.words for job in jobs], options, str(self.config.name), logs)
        write_text(script, text)
        if options.dry_run:
            print(f"Batch script, not submitted: {script}", flush=True)
            return [_returned(job) for job in jobs]
        submit(script, jobs, logs)
        if options.wait:
            Watch(jobs).wait()
        return [_returned(job) for job in jobs]

    def _check_sweeper(self, options: SlurmOptions) -> None:
        """A sweeper that learns from results cannot go on without them."""
        learns = not str(self.config.hydra.sweeper._target_).endswith(".BasicSweeper")
        if learns and (options.dry_run or not options.wait):
            key = "launcher.dry_run=true" if options.dry_run else "launcher.wait=false"
            raise UserError(f"{key}: this sweep chooses its next jobs by what the last ones returned")

    def _compose(self, overrides: list[str], number: int, own_folder: bool) -> tuple[DictConfig, Path]:
        """Return the config of one job, checked, and its run folder: the given one, or its place in a sweep.

        Raises:
            UserError: If something is wrong with it: better said now than after a night in the queue.
        """
        from i2i_lightning.cli import check
        from i2i_lightning.config import SCHEMAS, RunConfig

        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            of_sweep = (str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir))
            folder = Path(*((str(config.hydra.run.dir),) if own_folder else of_sweep)).absolute()
            del config["hydra"]
        check.check_config(config, SCHEMAS.get(str(self.config.hydra.job.config_name), RunConfig))
        return config, folder

    def _job(self, overrides: list[str], folder: Path, fit: Sequence[str]) -> Job:
        of_hydra = list(self.config.hydra.overrides.hydra)
        title = " ".join(word for word in overrides if not _is_about_launching(word)) or "no overrides"
        return Job(job_words(overrides, folder, fit, of_hydra, sys.argv[1:]), folder, overrides, title)


def fit_to_tasks(config: DictConfig, options: SlurmOptions) -> list[str]:
    """Return the overrides that make a job use all of the tasks it is given.

    Raises:
        UserError: If the config asks for other numbers of devices or nodes.
    """
    tasks, nodes = options.tasks, options.nodes
    devices = config.trainer.devices
    count = len(devices) if OmegaConf.is_list(devices) else devices
    if config.trainer.num_nodes not in (1, nodes):
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes} with launcher.nodes={nodes}: "
            f"give launcher.nodes={config.trainer.num_nodes}"
        )
    if tasks * nodes == 1:
        return []  # one task is an ordinary run, which may start processes of its own
    if str(count) not in ("1", "-1", "auto", str(tasks)):
        raise UserError(
            f"trainer.devices={count} with launcher.tasks_per_node={tasks}: "
            f"give launcher.tasks_per_node={count}"
        )
    return [f"trainer.devices={tasks}", f"trainer.num_nodes={nodes}"]


def job_words(
    overrides: Iterable[str], folder: Path, fit: Sequence[str], of_hydra: Iterable[str], argv: Sequence[str]
) -> list[str]:
    """Return the command line of a job, without the program's name.

    Args:
        overrides: What the sweeper chose for this job.
        folder: Where it runs.
        fit: What makes it use all of its tasks; what the user said about the same keys goes first.
        of_hydra: Overrides of Hydra's settings in the command line that submits.
        argv: That command line itself, for its flags.
    """
    # A job goes on in its folder in any case, which is what resume=auto asks for.
    own = [word for word in overrides if not _is_about_launching(word) and not _is_automatic(word)]
    keys = {_key(word) for word in own}
    words = [*own, *(word for word in fit if _key(word) not in keys)]
    if "resume" not in keys:  # else the run and its folder are there, and it keeps its groups
        words += [word for word in of_hydra if not OF_THIS_COMMAND.match(_key(word))]
        # An option of the sweep group would have each job sweep once more.
        words += ["launcher=local", "hydra.mode=RUN", f"hydra.run.dir={arguments.quote(str(folder))}"]
        words += ["resume=auto"]
    return [*words, *(flag for flag in arguments.parse(argv, []).flags if flag not in RUN_FLAGS)]


def _is_about_launching(word: str) -> bool:
    return _key(word).partition(".")[0] == "launcher"


def _is_automatic(word: str) -> bool:
    value = arguments.split_override(word)[1] or ""
    return _key(word) == "resume" and value.strip("'\"") in ("auto", "null", "")


def _key(word: str) -> str:
    return arguments.split_override(word)[0].lstrip("~").partition("@")[0]


def _returned(job: Job) -> JobReturn:
    """Return what Hydra wants to know of a job: it raises the error of one that failed."""
    message = job.last_message() if job.has_failed else ""
    error = UserError(f"job {job.slurm_id}: {job.state}{job.detail}\n{message}\nits log: {job.log}")
    return JobReturn(
        overrides=job.overrides,
        working_dir=str(job.folder),
        status=JobStatus.FAILED if job.has_failed else JobStatus.COMPLETED,
        _return_value=error if job.has_failed else None,
    )
