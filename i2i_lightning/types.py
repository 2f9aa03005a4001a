"""The vocabulary that every package shares: batch types, sizes, and the error a user's slip raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import NotRequired, TypedDict

if TYPE_CHECKING:  # slips are told before torch is imported
    from torch import Tensor

Size = int | Sequence[int]
"""A square side in pixels, or ``[height, width]``."""


class UserError(ValueError):
    """A slip that its user can mend.

    The message is one to three lines that name the file or key, the value, and what would be right. The
    commands print it without a traceback and exit with a non-zero status.
    """


class PairedBatch(TypedDict):
    """A batch of aligned pairs, as the networks see it.

    Images are float ``(N, C, H, W)`` in [-1, 1]; one-hot label maps are float ``(N, K, H, W)`` in {0, 1}.
    ``real_a`` is the network's input and ``real_b`` its target, whatever side of the file each came from.
    """

    real_a: Tensor
    real_b: Tensor
    name: list[str]
    parsing: NotRequired[Tensor]
    landmarks: NotRequired[Tensor]
    parameters: NotRequired[Tensor]


def height_width(size: Size, key: str = "size") -> tuple[int, int]:
    """Return ``size`` as ``(height, width)`` in pixels.

    Args:
        size: A square side, or ``[height, width]``.
        key: The config key to name in the error.

    Raises:
        UserError: If ``size`` is not one or two positive whole numbers.
    """
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"{key}={size}: give one side in pixels, or [height, width], both at least 1")
    return sides[0], sides[1]
