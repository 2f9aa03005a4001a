"""Pictures and pages are for people: where the disk takes none, a run says so once and goes on without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.types import UserError

log = logging.getLogger(__name__)

_warned: set[Path] = set()


def write_if_possible(path: Path, content: bytes | str | Callable[[Path], object]) -> bool:
    """Write a file beside and rename it, as a checkpoint is written; a file that nobody needs to continue.

    Args:
        path: Where it is to be. Of the files of one folder, the first that cannot be written is warned of.
        content: As for :func:`~i2i_lightning.checkpoints.io.write_beside`.

    Returns:
        Whether it is there now.
    """
    try:
        write_beside(path, content)
    except UserError as error:
        if path.parent not in _warned:
            _warned.add(path.parent)
            log.warning("%s; training goes on without", error)
        return False
    _warned.discard(path.parent)
    return True
