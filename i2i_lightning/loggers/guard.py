"""A log that cannot be written must not end a run: it warns once, and training goes on."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 1800.0


class GuardedLogger:
    """A logger whose failures are told once, and do not reach the training.

    It stands in for the logger that it guards and has all of its attributes; only calls of methods differ.
    After a failure the logger is left alone for a while, twice as long each time, so that a server that
    answers after a minute's timeout does not cost a minute in every batch; then it is tried again. What was
    to be logged in between is lost to it. The checkpoints do not depend on any log.

    Args:
        logger: Any Lightning logger.
        first_pause_s: Seconds without it after its first failure.
    """

    def __init__(self, logger: Any, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._logger = logger
        self._first_pause_s = self._pause_s = first_pause_s
        self._silent_until = 0.0
        self._has_warned = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_logger":  # while it is unpickled, there is nothing to ask yet
            raise AttributeError(name)
        if name == "experiment":  # the other side's own object, not a method, even where it can be called
            if not hasattr(type(self._logger), name):
                raise AttributeError(name)
            return self._call(name, lambda: self._logger.experiment)  # Lightning asks for it at set-up
        value = getattr(self._logger, name)
        return partial(self._call, name, value) if callable(value) else value

    def _call(self, name: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() < self._silent_until and name != "finalize":
            return None
        try:
            answer = method(*args, **kwargs)
            self._pause_s = self._first_pause_s
            return answer
        except Exception as error:
            self._silent_until = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._warn(error)
            return None

    @rank_zero_only
    def _warn(self, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        log.warning(
            "%s cannot log (%s); training goes on, and it is tried again from time to time",
            type(self._logger).__name__,
            reason,
        )
