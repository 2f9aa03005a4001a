"""How many jobs a sweep is to have, from what Hydra wrote down of it."""

from __future__ import annotations

import math
from pathlib import Path


def planned_jobs(folder: Path) -> int | None:
    """Return the number of jobs of the grid in ``folder``.

    None where nobody can tell: it is no sweep's folder, or its jobs depend on what is there (``glob``).
    """
    file = folder / "multirun.yaml"
    if not file.is_file():
        return None
    # Late: most of what the report costs.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        hydra = OmegaConf.load(file).hydra
        words = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*words, *hydra.overrides.task])
        chosen = {word.get_key_element(): word for word in parsed}  # the command line says the last word
        swept = [word for word in chosen.values() if word.is_sweep_override()]
        return math.prod(sum(1 for _ in word.sweep_string_iterator()) for word in swept)
    except (OSError, HydraException, ValueError, AttributeError, AssertionError):
        return None
