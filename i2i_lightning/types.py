"""The vocabulary that every package shares: batch types, sizes, and the error a user's slip raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

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


@dataclass(frozen=True)
class ImageFormat:
    """What the images of one side of a translation are; saved with every checkpoint as a plain dict.

    Args:
        kind: ``image`` in [-1, 1]; ``labels``, one-hot over the classes; ``lightness``, L / 50 - 1 of CIE
            L*a*b*; ``chroma``, (a, b) / 110, which becomes a picture together with its input's lightness.
        channels: Channels that a network sees; the number of classes for labels.
        dtype: What a file of this side holds: ``uint8``, ``uint16`` or ``float32``.
        palette: Colour of each class, for labels that have one.
        convert: ``none``, or ``match`` where 8-bit files of another colour mode are converted.
    """

    kind: Literal["image", "labels", "lightness", "chroma"]
    channels: int
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    palette: tuple[tuple[int, ...], ...] | None = None
    convert: str = "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain containers, which load with ``weights_only=True``."""
        fields = asdict(self)
        return fields | {"palette": self.palette and [list(colour) for colour in self.palette]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ImageFormat:
        """Return what ``to_dict`` wrote."""
        palette = fields.get("palette")
        return cls(**{**fields, "palette": palette and tuple(tuple(colour) for colour in palette)})


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


class UnpairedBatch(TypedDict):
    """A batch of two sets without pairs, as the networks see it.

    ``real_a`` and ``real_b`` are as in :class:`PairedBatch` and have nothing to do with each other. Where the
    sets are gone through in order, bool ``first_a`` and ``first_b (N,)`` are true where a picture comes for
    the first time: the shorter set is gone through again and again. Test batches of ToyFaces also carry the
    truth of either side, for scoring alone: ``partner_a`` is what ``real_a``'s face looks like in b.
    """

    real_a: Tensor
    real_b: Tensor
    name_a: list[str]
    name_b: list[str]
    first_a: NotRequired[Tensor]
    first_b: NotRequired[Tensor]
    partner_a: NotRequired[Tensor]
    partner_b: NotRequired[Tensor]
    parsing_a: NotRequired[Tensor]
    parsing_b: NotRequired[Tensor]
    landmarks_a: NotRequired[Tensor]
    landmarks_b: NotRequired[Tensor]
    parameters_a: NotRequired[Tensor]
    parameters_b: NotRequired[Tensor]


class ImageBatch(TypedDict):
    """A batch of images of one set, as the networks see it.

    ``real`` is float ``(N, C, H, W)`` in [-1, 1]; ``label`` is float ``(N, K)``, one-hot over K classes where
    images have classes.
    """

    real: Tensor
    name: list[str]
    label: NotRequired[Tensor]


Batch = PairedBatch | UnpairedBatch | ImageBatch


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
