"""ToyFaces as a map from a number to a face, drawn when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from i2i_lightning.data.toyfaces.geometry import landmarks
from i2i_lightning.data.toyfaces.parameters import (
    SPLIT_SIZES,
    FaceParameters,
    attributes,
    sample_parameters,
    vector,
)
from i2i_lightning.data.toyfaces.render import KINDS, render
from i2i_lightning.types import UserError


class ToyFaces:
    """The faces of one split and version; item ``i`` is a pure function of ``(version, split, first + i)``.

    An item is a dict: the drawings asked for (see :func:`~i2i_lightning.data.toyfaces.render.render`),
    ``landmarks`` float32 ``(K, 2)`` in [0, 1], ``parameters`` float32 ``(P,)`` named by ``VECTOR_NAMES``,
    ``attributes`` a dict of names to bools, ``name`` a text and ``face`` the
    :class:`~i2i_lightning.data.toyfaces.parameters.FaceParameters`.

    Args:
        split: ``train``, ``val`` or ``test``.
        size_px: Side of the square drawings, 32 to 512.
        kinds: What to draw.
        size: Number of faces; None takes the split's own (4000, 200, 200). More only appends.
        version: Version of the distribution.
        first: Number of the split's face that is item 0: two sets with gaps between them share no face.

    Raises:
        UserError: If the split, a kind, a size or the version is impossible.
    """

    def __init__(
        self,
        split: str,
        size_px: int = 64,
        kinds: Sequence[str] = KINDS,
        size: int | None = None,
        version: int = 1,
        first: int = 0,
    ) -> None:
        sample_parameters(split, 0, version)  # Complains about the split and the version.
        if size is not None and size < 1:
            raise UserError(
                f"{split} size={size}: give at least 1 face, or null for the split's own {SPLIT_SIZES[split]}"
            )
        if not 16 <= size_px <= 2048:
            raise UserError(
                f"size_px={size_px}: ToyFaces are drawn from 16 to 2048 px, and meant for 32 to 512"
            )
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise UserError(f"kinds: cannot draw {', '.join(unknown)}; choose from {', '.join(KINDS)}")
        self.split = split
        self.size_px = size_px
        self.kinds = tuple(kinds)
        self.version = version
        self.first = first
        self._size = SPLIT_SIZES[split] if size is None else size

    def __len__(self) -> int:
        return self._size

    def parameters(self, index: int) -> FaceParameters:
        """Return the parameters of face ``index``.

        Raises:
            IndexError: If there is no such face.
        """
        if not 0 <= index < self._size:
            raise IndexError(f"face {index} of {self._size} ({self.split})")
        return sample_parameters(self.split, self.first + index, self.version)

    def name(self, index: int) -> str:
        """Return the name of face ``index``: its split and its number there."""
        return f"{self.split}_{self.first + index:05d}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        face = self.parameters(index)
        return {
            **render(face, self.size_px, self.kinds),
            "landmarks": landmarks(face),
            "parameters": vector(face),
            "attributes": attributes(face),
            "name": self.name(index),
            "face": face,
        }
