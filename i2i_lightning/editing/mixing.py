"""Style mixing: some rows of w_plus of one latent, the rest of another (Karras et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from i2i_lightning.editing.ranges import as_written, parts_of, whole_numbers
from i2i_lightning.types import UserError

STYLES = {"coarse": (4, 8), "middle": (16, 32), "fine": (64, 1 << 30)}
"""The resolutions in pixels, first and last, whose layers have these styles (ibid., figure 3): pose and face
shape; features and hair; colours and texture."""


def rows_of(layers: Any, row_names: Sequence[str], key: str = "layers") -> list[int]:
    """Return the rows of w_plus that ``layers`` names, in order and each once.

    Args:
        layers: ``coarse``, ``middle``, ``fine``, rows such as ``0-3``, or several of these behind each other:
            ``coarse,6``.
        row_names: What each row drives, coarse to fine, as ``StyleGenerator.row_names``: ``b8.conv1`` is
            a layer at 8 px.
        key: The config key to name in the error.

    Raises:
        UserError: If there are no such rows.
    """
    shown = as_written(layers)
    sizes = [int(name.split(".")[0].removeprefix("b")) for name in row_names]
    rows: set[int] = set()
    for part in parts_of(layers):
        if part in STYLES:
            low, high = STYLES[part]
            named = [row for row, size in enumerate(sizes) if low <= size <= high]
            if not named:
                raise UserError(
                    f"{key}={shown}: {part} styles begin at {low} px; this generator ends at {sizes[-1]} px"
                )
            rows.update(named)
        elif part[:1].isdigit():
            rows.update(whole_numbers(part, key, len(row_names) - 1, "rows"))
        else:
            raise UserError(f"{key}={shown}: give {', '.join(STYLES)}, or rows such as 0-{len(sizes) - 1}")
    if not rows:
        raise UserError(f"{key}={shown}: names no row, and nothing would change")
    return sorted(rows)


def mix(base: Tensor, style: Tensor, rows: Sequence[int]) -> Tensor:
    """Return ``base`` with ``rows`` taken from ``style``; both are ``w_plus (N, num_ws, w_dim)``."""
    mixed = base.clone()
    mixed[:, list(rows)] = style[:, list(rows)]
    return mixed
