"""The paired tasks of ToyFaces as a plain table that imports nothing: a configuration reads it quickly."""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """What is drawn for the two sides of a pair, and what the networks see of it.

    ``a`` and ``b`` name drawings of ``render.KINDS``, or something made from the photo: ``grey``, ``low``,
    ``lab``. A side of kind ``labels`` is one-hot over its channels, one of kind ``image`` is in [-1, 1].
    """

    a: str
    b: str
    in_channels: int
    out_channels: int
    in_kind: str
    out_kind: str


TASKS: dict[str, Task] = {
    "regions_to_photo": Task("regions", "photo", 3, 3, "image", "image"),
    "parsing_to_photo": Task("parsing", "photo", 11, 3, "labels", "image"),
    # The target is the palette picture, as pix2pix does it; the nearest colour gives the class back.
    "photo_to_parsing": Task("photo", "palette", 3, 3, "image", "image"),
    "edges_to_photo": Task("edges", "photo", 1, 3, "image", "image"),
    "grey_to_colour": Task("grey", "photo", 1, 3, "image", "image"),
    "grey_to_colour_lab": Task("lab", "lab", 1, 2, "image", "image"),
    "low_to_high": Task("low", "photo", 3, 3, "image", "image"),
    "photo_to_cartoon": Task("photo", "cartoon", 3, 3, "image", "image"),
    "cartoon_to_photo": Task("cartoon", "photo", 3, 3, "image", "image"),
}
"""Every task by name."""


def channels(task: str, side: str) -> int:
    """Return the channels that a network has on one side of a task.

    Args:
        task: A name of :data:`TASKS`.
        side: ``in`` or ``out``.

    Raises:
        ValueError: If there is no such task or side.
    """
    if task not in TASKS:
        raise ValueError(f"data.task={task}: choose one of {', '.join(TASKS)}")
    if side not in ("in", "out"):
        raise ValueError(f"side={side}: a task has the sides in and out")
    return TASKS[task].in_channels if side == "in" else TASKS[task].out_channels
