"""The classes that toy faces can be told apart by: what a class-conditional generator is given."""

from __future__ import annotations

from i2i_lightning.data.toyfaces.parameters import (
    ATTRIBUTE_NAMES,
    BACKDROPS,
    BEARDS,
    CLOTHES,
    GLASSES,
    HAIR_COLOURS,
    HAIR_STYLES,
    FaceParameters,
    attributes,
)
from i2i_lightning.types import UserError

CLASSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ATTRIBUTE_NAMES, ("no", "yes")),
    # Over the yes-or-no question of whether there are glasses, or a beard, goes what kind.
    "hair_style": HAIR_STYLES,
    "hair_colour": HAIR_COLOURS,
    "glasses": GLASSES,
    "beard": BEARDS,
    "clothes": CLOTHES,
    "backdrop": BACKDROPS,
}
"""The names of the classes, by what faces are told apart by."""


def num_classes(label: str | None) -> int:
    """Return the number of classes of ``label``; 0 for None.

    Raises:
        UserError: If there is no such label.
    """
    if label is None:
        return 0
    if label not in CLASSES:
        raise UserError(f"data.label={label}: choose one of {', '.join(CLASSES)}, or null")
    return len(CLASSES[label])


def class_of(face: FaceParameters, label: str) -> int:
    """Return the class of a face, an index into ``CLASSES[label]``."""
    names = CLASSES[label]
    if names == ("no", "yes"):
        return int(attributes(face)[label])
    return names.index(getattr(face, label))
