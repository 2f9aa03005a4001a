"""The batch script: what SLURM is asked for, and what it runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i2i_lightning.types import UserError

COMMAND = "i2i_lightning.commands.train"

SIGNAL = "USR1"
"""Sent to every task before the time limit, for
:class:`~i2i_lightning.callbacks.stopping.GracefulStop`."""


@dataclass(frozen=True)
class SlurmOptions:
    """What to ask SLURM for; the keys of ``launcher``.

    Args:
        nodes: Nodes of each job.
        tasks_per_node: Processes on each node, each of which drives one device; None for one for each GPU, or
            one where no GPUs are asked for.
        gpus_per_node: GPUs on each node.
        cpus_per_task: Processor cores for each task: 1 and the workers of the data loader.
        partition: Partition to run in; None for the default one.
        account: Account to charge.
        qos: Quality of service.
        time: Time limit: minutes, or ``days-hours:minutes:seconds``; None for the partition's.
        memory: Memory of each node, such as ``16G``.
        constraint: Features that the nodes must have.
        array_parallelism: How many jobs of a sweep may run at one time; None for all that fit.
        setup: Lines for the shell on the first node before the job starts, such as ``module load cuda``.
        container: What to put before the command, such as ``apptainer exec --nv image.sif``.
        python: Interpreter of the jobs; None for this one, and in a container for its ``python``.
        signal_seconds: How long before the time limit a job is told to save and go back into the queue. A
            validation that has begun is finished first.
        additional: Other options of ``sbatch`` and their values; true for those that take none.
        dry_run: Write the batch script, and submit nothing.
        wait: Wait for the jobs, and fail if one of them does; else return once they are submitted.

    Raises:
        UserError: If a number is impossible, or there are more tasks than GPUs.
    """

    nodes: int = 1
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | int | None = None
    account: str | int | None = None
    qos: str | int | None = None
    time: int | str | None = None
    memory: int | str | None = None
    constraint: str | None = None
    array_parallelism: int | None = None
    setup: Sequence[str] = ()
    container: str | None = None
    python: str | None = None
    signal_seconds: int = 120
    additional: Mapping[str, Any] | None = None
    dry_run: bool = False
    wait: bool = True

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "cpus_per_task", "array_parallelism", "signal_seconds"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"launcher.{key}={value}: give at least 1")
        if self.gpus_per_node and self.tasks > self.gpus_per_node:
            raise UserError(
                f"launcher.tasks_per_node={self.tasks} with launcher.gpus_per_node={self.gpus_per_node}: "
                "each task drives one GPU; give as many"
            )

    @property
    def tasks(self) -> int:
        """Tasks on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1


def batch_script(jobs: Sequence[Sequence[str]], options: SlurmOptions, name: str, logs: Path) -> str:
    """Return the text of the batch script that runs ``jobs``: several of them as a job array.

    Args:
        jobs: The command line of each job, without the program's name.
        options: What to ask SLURM for.
        name: What SLURM calls the job.
        logs: Folder of the logs; also of the notes that the script leaves about how it ended.

    Raises:
        UserError: If submitit is not installed.
    """
    try:
        from submitit.slurm.slurm import _make_sbatch_string
    except ImportError as error:
        raise UserError('launcher=slurm: needs submitit; pip install "i2i_lightning[slurm]"') from error

    python = options.python or ("python" if options.container else sys.executable)
    command = f'{shlex.quote(python)} -u -m {COMMAND} "${{words[@]}}"'
    # srun does not inherit this from sbatch since SLURM 22.05.
    cores = [f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task else []
    requested: dict[str, Any] = {
        "job_name": name,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "nodes": options.nodes,
        "ntasks_per_node": options.tasks,
        "gpus_per_node": options.gpus_per_node,
        "cpus_per_task": options.cpus_per_task,
        "mem": options.memory,
        "constraint": options.constraint,
        "array_parallelism": options.array_parallelism or len(jobs),
        "wckey": None,  # submitit would set its own name, which a cluster that tracks these refuses
    }
    forced: dict[str, Any] = {
        "signal": f"{SIGNAL}@{options.signal_seconds}",
        "requeue": True,
        "chdir": str(Path.cwd()),
        **(options.additional or {}),
    }
    text = _make_sbatch_string(
        command=f"{options.container} {command}" if options.container else command,
        folder=str(logs).replace("%", "%%"),
        setup=[*options.setup, *_choice_of_words(jobs), *_before(logs)],
        teardown=_after(logs),
        stderr_to_stdout=True,
        map_count=len(jobs) if len(jobs) > 1 else None,
        additional_parameters={key: value for key, value in forced.items() if value not in (None, False)},
        # One task that fails ends the others, which would wait for it.
        srun_args=["--open-mode=append", "--kill-on-bad-exit=1", *cores],
        **requested,
    )
    return f"{text}\n"


def _choice_of_words(jobs: Sequence[Sequence[str]]) -> list[str]:
    lines = ["", "# The command line of each job.", 'case "${SLURM_ARRAY_TASK_ID:-0}" in']
    for number, words in enumerate(jobs):
        quoted = [f"      {shlex.quote(word)}" for word in words]
        lines += [f"  {number})", "    words=(", *quoted, "    ) ;;"]
    return [*lines, "esac"]


def _before(logs: Path) -> list[str]:
    return [
        "",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}; job=${job:-$SLURM_JOB_ID}",
        "# A task that cannot reach SLURM, in a container, asks to be requeued by this file.",
        f'export I2I_REQUEUE_FILE={shlex.quote(str(logs))}/"$job"_requeue',
        f'rm -f "$I2I_REQUEUE_FILE" {shlex.quote(str(logs))}/"$job"_exit  # of an earlier start',
    ]


def _after(logs: Path) -> list[str]:
    return [
        "status=$?",
        # The run ended well because it was to be requeued: if it cannot be, it is half done.
        'if [ -e "$I2I_REQUEUE_FILE" ]; then',
        '  rm "$I2I_REQUEUE_FILE"; scontrol requeue "$job" && exit; status=1',
        "fi",
        f'echo "$status" >{shlex.quote(str(logs))}/"$job"_exit  # for when SLURM has forgotten',
        'exit "$status"',
    ]
