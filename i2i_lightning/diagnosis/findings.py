"""What an examination found, as a page for people and as plain values for programs."""

from __future__ import annotations

import queue
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

Status = Literal["ok", "note", "problem"]
T = TypeVar("T")

SCHEMA = 1
"""Number of the JSON form; it changes when a key is renamed or taken away."""
COLUMNS = 80
MARKS: dict[Status, str] = {"ok": "OK", "note": "note", "problem": "PROBLEM"}
NO_BREAK = "\N{NO-BREAK SPACE}"
"""Stands in a finding's text where no new line should begin; shown as a blank."""
_MARK_WIDTH, _NAME_WIDTH = 9, 14
_INDENT = " " * (_MARK_WIDTH + _NAME_WIDTH)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: What it is, in a word or two.
        text: What was found, in a line or a few.
        status: ``ok``; ``note`` for what one should know; ``problem`` for what keeps a run from working.
        advice: What to do about it; empty where there is nothing to do.
        values: The same as plain numbers and strings, for programs.
    """

    name: str
    text: str
    status: Status = "ok"
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """The findings about one subject."""

    title: str
    findings: tuple[Finding, ...]

    def count(self, status: Status) -> int:
        """Return how many findings have ``status``."""
        return sum(finding.status == status for finding in self.findings)

    def page(self) -> str:
        """Return the section as lines of at most 80 columns."""
        lines = [self.title, "-" * len(self.title)]
        for finding in self.findings:
            first = f"{MARKS[finding.status]:<{_MARK_WIDTH - 2}}  {finding.name:<{_NAME_WIDTH - 1}} "
            lines += _wrap(finding.text, first, _INDENT)
            if finding.advice:
                lines += _wrap(finding.advice, f"{_INDENT}-> ", f"{_INDENT}   ")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the section as plain containers."""
        findings = [
            {
                "name": finding.name,
                "status": finding.status,
                "text": finding.text.replace(NO_BREAK, " "),
                "advice": finding.advice.replace(NO_BREAK, " "),
                "values": dict(finding.values),
            }
            for finding in self.findings
        ]
        return {"title": self.title, "findings": findings}


def examine(title: str, checks: Mapping[str, Callable[[], Iterable[Finding]]]) -> Section:
    """Run the checks of a section; one that fails is itself a finding, and the others still run.

    Args:
        title: The section's title.
        checks: By the name that a failure is reported under, a function that yields findings.
    """
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings.extend(check())
        # A broken installation fails with whatever it likes: missing libraries are OSErrors or worse.
        except Exception as error:
            findings.append(Finding(name, f"could not be examined: {brief(error)}", "problem"))
    return Section(title, tuple(findings))


def brief(error: BaseException) -> str:
    """Return an error as one line of bearable length, with its type where the text alone says too little."""
    text = " ".join(str(error).strip().partition("\n")[0].split())
    text = textwrap.shorten(text, 160, placeholder=" ...")
    says_enough = isinstance(error, (ValueError, RuntimeError, OSError)) and " " in text
    return text if says_enough else f"{type(error).__name__}: {text}"


class Errand(Generic[T]):
    """A call that runs while other things are looked at, and is given up if it does not come back.

    Looking up a host can take longer than any time limit of a connection; a thread that nobody waits for
    cannot hold the command up.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._answer: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

        def work() -> None:
            try:
                self._answer.put((call(), None))
            except Exception as error:
                self._answer.put((None, error))

        threading.Thread(target=work, daemon=True).start()

    def result(self, limit_s: float) -> T:
        """Return what the call returned, or raise what it raised.

        Raises:
            TimeoutError: If it has not come back after a further ``limit_s`` seconds.
        """
        try:
            value, error = self._answer.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"no answer within {limit_s:.0f} s") from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def output_of(*command: str, limit_s: float = 10) -> str | None:
    """Return what a program prints; None where there is no such program.

    Raises:
        RuntimeError: If it fails or does not end in time, with its own first words.
    """
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, errors="replace")
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} did not answer within {limit_s:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise RuntimeError(words[0] if words[0].startswith(command[0]) else f"{command[0]}: {words[0]}")
    return done.stdout.strip()


def listed(words: Sequence[str]) -> str:
    """Return words with commas between them, or ``none``."""
    return ", ".join(words) or "none"


def _wrap(text: str, first: str, later: str) -> list[str]:
    lines = textwrap.wrap(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK, " ") for line in lines] or [first.rstrip()]
