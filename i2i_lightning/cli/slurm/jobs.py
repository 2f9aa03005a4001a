"""Jobs in SLURM's hands: submit them, and wait until they are over."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from i2i_lightning.cli.record import write_text
from i2i_lightning.types import UserError

PROGRAM = "i2i-train"

OVER = (
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "PREEMPTED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)
"""States that a job does not leave by itself."""

LOGS = "slurm"
"""Folder of the batch scripts and logs in that of a sweep."""
SLOWEST_POLL_S = 15.0
TAIL_BYTES = 65536
"""How much of a log's end is searched for a message."""


@dataclass
class Job:
    """One job of a command line.

    Args:
        words: Its own command line.
        folder: Its run folder.
        overrides: The overrides that the sweeper chose for it.
        title: What tells it from others, for messages.
        slurm_id: What SLURM calls it: ``12``, or ``12_3``.
        logs: Folder of its logs.
        state: What SLURM last said of it.
        detail: What else there is to say of that: where it runs, why it waits, how it ended.
    """

    words: list[str]
    folder: Path
    overrides: list[str]
    title: str
    slurm_id: str = ""
    logs: Path = Path()
    state: str = ""
    detail: str = ""

    @property
    def log(self) -> Path:
        """What the first task and the batch script print; the other tasks' logs lie beside it."""
        return self.logs / f"{self.slurm_id}_0_log.out"

    @property
    def is_over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.state in OVER

    @property
    def has_failed(self) -> bool:
        """Whether it has ended without reaching its end."""
        return self.is_over and self.state != "COMPLETED"

    def last_message(self) -> str:
        """Return the last message of ours in its logs, which says why it failed; or nothing."""
        for log in sorted(self.logs.glob(f"{self.slurm_id}_*_log.out")):
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
            for line in reversed(lines):
                if line.startswith(PROGRAM):
                    return line
        return ""


def submit(script: Path, jobs: Sequence[Job], logs: Path) -> None:
    """Submit ``script``, and note what SLURM calls each job: in ``jobs``, and in a file beside the script.

    Raises:
        UserError: If SLURM does not take it; with its own words.
    """
    environment = dict(os.environ)
    if "SLURM_JOB_ID" in environment:  # what describes the job that we are in must not reach the new one
        environment = {
            name: value
            for name, value in environment.items()
            if not name.startswith("SLURM_") or name == "SLURM_CONF"
        }
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        says = " ".join(done.stderr.split())
        raise UserError(f"launcher=slurm: {says or 'sbatch failed'}\nthe batch script: {script}")
    number = done.stdout.strip().partition(";")[0]
    for index, job in enumerate(jobs):
        job.slurm_id, job.logs = (f"{number}_{index}" if len(jobs) > 1 else number), logs
        print(f"Job {job.slurm_id}: submitted: {job.title}; log: {job.log}", flush=True)
    names = {job.folder.name: job.slurm_id for job in jobs}
    write_text(script.with_suffix(".json"), json.dumps(names))


def is_under_way(sweep: Path, run: Path) -> bool:
    """Say whether SLURM has a job for the folder ``run`` of a sweep that waits or runs.

    Args:
        sweep: Folder of the sweep.
        run: The run folder.
    """
    for note in (sweep / LOGS).glob("submission_*.json"):
        name = json.loads(note.read_text(encoding="utf-8")).get(run.name)
        if name is None:
            continue
        command = ["scontrol", "show", "job", "--oneliner", name]
        with suppress(OSError):
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            facts = parse_jobs(shown).get(name)
            if facts is not None and facts.get("JobState") not in OVER:
                return True
    return False


class Watch:
    """Waits for jobs, and says in one line each time that the state of one changes.

    Args:
        jobs: What was submitted.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.slurm_id: job for job in jobs}
        self.said: dict[str, str] = {}
        self.doubted: set[str] = set()
        self.out_of_reach = False

    def wait(self) -> None:
        """Return once all jobs are over.

        Raises:
            KeyboardInterrupt, SystemExit: When interrupted; the jobs go on.
        """
        number = next(iter(self.jobs)).partition("_")[0]
        began = time.monotonic()
        try:
            while not all(job.is_over for job in self.jobs.values()):
                self.look(number)
                waited = time.monotonic() - began
                if not all(job.is_over for job in self.jobs.values()):
                    time.sleep(min(SLOWEST_POLL_S, 1 + waited / 20))
        except (KeyboardInterrupt, SystemExit):
            print(f"The jobs go on without this command; scancel {number} ends them", flush=True)
            raise

    def look(self, number: str) -> None:
        """Ask SLURM once, and say what is new."""
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", number], capture_output=True, text=True
        )
        if done.returncode and "Invalid job id" not in done.stderr:
            if not self.out_of_reach:
                print(f"SLURM does not answer; asking again: {' '.join(done.stderr.split())}", flush=True)
            self.out_of_reach = True
            return
        self.out_of_reach = False
        facts = parse_jobs(done.stdout)
        for name, job in self.jobs.items():
            if not job.is_over:
                self._note(job, facts.get(name))

    def _note(self, job: Job, facts: Mapping[str, str] | None) -> None:
        state, detail = _forgotten(job) if facts is None else _read_state(facts)
        if state in OVER and state != "COMPLETED" and job.slurm_id not in self.doubted:
            self.doubted.add(job.slurm_id)  # a job on its way back to the queue may look dead for a moment
            return
        self.doubted.discard(job.slurm_id)
        job.state, job.detail = state, detail
        line = f"{state}{detail}"
        if job.has_failed:
            message = job.last_message()
            line += f"{': ' if message else ''}{message}; log: {job.log}"
        if self.said.get(job.slurm_id) != line:
            self.said[job.slurm_id] = line
            print(f"Job {job.slurm_id}: {line}", flush=True)


def parse_jobs(text: str) -> dict[str, dict[str, str]]:
    """Return what ``scontrol show job --oneliner`` says of each job, by name: ``12``, or ``12_3``.

    Elements of an array that wait together share one line, ``ArrayTaskId=0-3,7%2``.
    """
    jobs: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        facts = dict(re.findall(r"(?:^|\s)([A-Za-z]\w*)=(\S*)", line))
        if "JobId" not in facts:
            continue
        if "ArrayJobId" not in facts:
            jobs[facts["JobId"]] = facts
            continue
        elements = facts.get("ArrayTaskId", "").partition("%")[0]
        for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", elements):
            for index in range(int(first), int(last or first) + 1, int(step or 1)):
                jobs[f"{facts['ArrayJobId']}_{index}"] = facts
    return jobs


def _read_state(facts: Mapping[str, str]) -> tuple[str, str]:
    """Return a job's state, and what else there is to say of it."""
    state = facts.get("JobState", "UNKNOWN")
    if state == "PENDING":
        restarts = facts.get("Restarts", "0")
        again = f", back in the queue, restart {restarts}" if restarts != "0" else ""
        return state, f" ({facts.get('Reason', '')}{again})"
    if state == "RUNNING":
        return state, f" on {facts.get('NodeList', '?')}"
    if state in OVER and state != "COMPLETED":
        status, _, signal = facts.get("ExitCode", "0:0").partition(":")
        killed = f", signal {signal}" if signal not in ("", "0") else ""
        return state, f", exit status {status}{killed}"
    return state, ""


def _forgotten(job: Job) -> tuple[str, str]:
    """Return the state of a job that SLURM no longer knows, by the note that its batch script left."""
    note = job.logs / f"{job.slurm_id}_exit"
    if not note.is_file():
        return "CANCELLED", ", and SLURM no longer knows it: it was killed before it could say how it ended"
    status = note.read_text(encoding="utf-8").strip()
    return ("COMPLETED", "") if status == "0" else ("FAILED", f", exit status {status}")
