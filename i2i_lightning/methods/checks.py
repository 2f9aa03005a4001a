"""What every method asks of its loss config."""

from __future__ import annotations

import math

from i2i_lightning.types import UserError


def check_weights(loss: object) -> None:
    """Raise ``UserError`` unless every ``lambda_`` of ``loss``, None left out, is finite and 0 or more."""
    for name, weight in vars(loss).items():
        if name.startswith("lambda_") and weight is not None and not 0 <= weight < math.inf:
            raise UserError(f"loss.{name}={weight}: a weight is a finite number, 0 or more")


def check_loss(loss: object, kind: type, name: str) -> None:
    """Raise ``UserError`` unless ``loss`` is of a method's own kind, ``name`` in ``conf/loss``."""
    if not isinstance(loss, kind):
        raise UserError(f"loss: this method takes loss={name}, not a {type(loss).__name__}")
