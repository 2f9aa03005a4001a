"""Which way is better, for every figure that a run may have."""

from __future__ import annotations

import math
import re

from i2i_lightning.metrics.better import BETTER, OTHER_BETTER, REPORT_BETTER

_KNOWN = {**BETTER, **OTHER_BETTER, **REPORT_BETTER, "images_per_s": "higher"}


def base_name(metric: str) -> str:
    """Return a figure's own name, without where it was measured and in which direction.

    >>> base_name("val/judge_iou"), base_name("test_last/psnr_ab")
    ('judge_iou', 'psnr')
    """
    return re.sub(r"_(ab|ba)$", "", metric.rpartition("/")[2])


def better(metric: str) -> str | None:
    """Return ``lower``, ``higher`` or ``near 1``; None where nobody knows."""
    return _KNOWN.get(base_name(metric))


def badness(metric: str, value: float) -> float:
    """Return a number that is the smaller, the better the value is.

    What should be near 1 is a ratio: twice too much is as bad as half of it.

    Raises:
        KeyError: If nobody knows which way is better.
    """
    way = _KNOWN[base_name(metric)]
    if way == "near 1":
        return abs(math.log(value)) if value > 0 else math.inf
    return value if way == "lower" else -value
