"""Ask SLURM to start this job again: after its time limit or a pre-emption it goes on where it stopped.

``scontrol requeue`` puts a running batch job back into the queue under its own id, with its own files. SLURM
then ends the processes of this attempt, so whatever must survive is written before.

This module imports nothing but the standard library: a signal may come while torch is being imported, and
what was imported by half cannot be imported again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REQUEST_FILE = "I2I_REQUEUE_FILE"
"""Environment variable with a file to create where ``scontrol`` is out of reach, as in a container: the batch
script that ``launcher=slurm`` writes looks for it outside, and requeues."""

ENDING = ("COMPLETING", "CANCELLED")
"""States of a job that SLURM is ending: before it sends SIGTERM it no longer calls the job running."""

TIMEOUT_S = 60


def in_slurm() -> bool:
    """Return whether this process runs inside of a SLURM job: as a task, in a batch script or in a shell."""
    return "SLURM_JOB_ID" in os.environ


def job_id() -> str:
    """Return the name of this job, or of this element of a job array, as ``scontrol`` takes it: 12, or 12_3.

    One element of an array bears the array's own number as ``SLURM_JOB_ID``, and by that number SLURM would
    requeue all of them.

    Raises:
        KeyError: Outside of SLURM.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def restart_count() -> int:
    """Return how often SLURM has started this job again; 0 in its first attempt, and outside of SLURM."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def requeue() -> bool:
    """Put this job back into SLURM's queue; to be called by its first process, once everything is written.

    A job that somebody cancelled stays cancelled.

    Returns:
        Whether SLURM took the job back. If not, one line on stderr says why.
    """
    if not in_slurm():
        return False
    job = job_id()
    refusal = _ask(job)
    if refusal:
        print(f"SLURM does not start job {job} again: {refusal}", file=sys.stderr, flush=True)
    return not refusal


def _ask(job: str) -> str:
    """Requeue ``job``; return why that failed, or nothing."""
    if shutil.which("scontrol") is None:
        if REQUEST_FILE not in os.environ:
            return "there is no scontrol here; continue it by hand with resume=..."
        Path(os.environ[REQUEST_FILE]).touch()
        return ""
    known, text = _scontrol("show", "job", "--oneliner", job)
    facts = dict(re.findall(r"(\w+)=(\S+)", text)) if known else {}
    if int(facts.get("Restarts", 0)) > restart_count():
        return ""  # SLURM, or somebody else, has requeued it already
    if facts.get("BatchFlag") == "0":
        return "it is no batch job (sbatch); continue it by hand with resume=..."
    if facts.get("JobState") in ENDING and not _is_to_go_on(facts):
        return "it was cancelled"
    done, text = _scontrol("requeue", job)
    return "" if done else text


def _is_to_go_on(facts: Mapping[str, str]) -> bool:
    """Return whether a job is ended by its time limit or by pre-emption, and not by a person."""
    return facts.get("Reason") == "TimeLimit" or facts.get("PreemptTime", "None") not in ("None", "Unknown")


def _scontrol(*words: str) -> tuple[bool, str]:
    """Run ``scontrol``; return whether it succeeded, and what it printed in one line."""
    command = ["scontrol", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False, f"{' '.join(command)}: no answer within {TIMEOUT_S} s"
    return done.returncode == 0, " ".join((done.stdout or done.stderr).split())
