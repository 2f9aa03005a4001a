"""Draw a contact sheet: ``python -m i2i_lightning.data.toyfaces sheet.png --size 128``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.parameters import SPLIT_SIZES
from i2i_lightning.data.toyfaces.render import KINDS, ByteArray

_PICTURES = tuple(kind for kind in KINDS if kind not in ("parsing", "instances"))


def contact_sheet(faces: ToyFaces, columns: int) -> ByteArray:
    """Return the drawings of each face side by side, ``columns`` faces in a row, uint8 ``(H, W, 3)``."""
    cells = []
    for index in range(len(faces)):
        item = faces[index]
        cells.append(
            np.concatenate(
                [np.broadcast_to(item[kind], (3, *item[kind].shape[1:])) for kind in faces.kinds], 2
            )
        )
    while len(cells) % columns:
        cells.append(np.full_like(cells[0], 255))
    rows = [np.concatenate(cells[start : start + columns], 2) for start in range(0, len(cells), columns)]
    return np.ascontiguousarray(np.concatenate(rows, 1).transpose(1, 2, 0))


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(
        prog="python -m i2i_lightning.data.toyfaces", description="Draw a sheet of toy faces."
    )
    parser.add_argument("file", type=Path, help="the picture to write, .png")
    parser.add_argument("--size", type=int, default=128, help="side of a face in pixels (128)")
    parser.add_argument("--count", type=int, default=24, help="number of faces (24)")
    parser.add_argument("--columns", type=int, default=6, help="faces in a row (6)")
    parser.add_argument(
        "--kinds", nargs="+", default=["photo"], choices=_PICTURES, help="what to draw of each (photo)"
    )
    parser.add_argument("--split", default="train", choices=sorted(SPLIT_SIZES), help="which faces (train)")
    arguments = parser.parse_args()
    faces = ToyFaces(arguments.split, arguments.size, arguments.kinds, arguments.count)
    Image.fromarray(contact_sheet(faces, arguments.columns)).save(arguments.file)


if __name__ == "__main__":
    main()
