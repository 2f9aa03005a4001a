"""Photos of people as the aligned faces in them: one face is cut out of each photo, as FFHQ has its faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from i2i_lightning.data.alignment import crop, face_quad, landmarks_of
from i2i_lightning.data.cache import Pictures
from i2i_lightning.data.checks import FileProblem, raise_problems
from i2i_lightning.data.dataset import FileImages
from i2i_lightning.data.decode import SideFormat, decode
from i2i_lightning.data.transforms import network_image
from i2i_lightning.types import UserError

KEY = "data.fit=align"


def find_faces(paths: Sequence[Path], side: SideFormat, where: str) -> list[Tensor]:
    """Return the corners of the one face in each photo; see :mod:`i2i_lightning.data.alignment`.

    Args:
        paths: Files of photos.
        side: What is expected of them.
        where: The images' place in the config, for messages.

    Raises:
        UserError: If a file is unusable, or does not show one face: one message for all of them.
    """
    quads = []
    problems = []
    for path in paths:
        try:
            pixels = decode(path, side)
            quads.append(face_quad(landmarks_of(path, pixels, KEY)))
        except FileProblem as problem:
            problem.name = problem.name or str(path)
            problems.append(problem)
        except UserError as error:
            words = str(error).removeprefix(f"{KEY}: ").removeprefix(f"{path}: ")
            problems.append(FileProblem(f"not one face to align ({KEY})", detail=words, name=str(path)))
    raise_problems(where, problems)
    return quads


@dataclass(frozen=True, kw_only=True)
class AlignedFaces(FileImages):
    """Faces cut out of photos as FFHQ has them, or out of masks of photos.

    Args:
        quads: Corners of the face in each file; see :func:`find_faces`.
        size_px: Side of a face.
    """

    quads: Sequence[Tensor]
    size_px: int

    def __getitem__(self, index: int) -> Pictures:
        """Return the face of a photo, uint8 ``(C, size_px, size_px)``."""
        whole = network_image(self.checked(decode, self.files[index], self.side))
        face = crop(whole, self.quads[index], self.size_px)[0]
        return (face.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy(),)
