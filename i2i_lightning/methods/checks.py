"""What every method asks of its loss config."""

from __future__ import annotations

from i2i_lightning.types import UserError


def check_weights(loss: object) -> None:
    """Raise ``UserError`` unless every ``lambda_`` of ``loss``, None left out, is 0 or more."""
    for name, weight in vars(loss).items():
        if name.startswith("lambda_") and weight is not None and not weight >= 0:  # NaN neither
            raise UserError(f"loss.{name}={weight}: a weight is 0 or more")


def check_loss(loss: object, kind: type, method: str) -> None:
    """Raise ``UserError`` unless ``loss`` is that of ``method``, by its name in ``conf/method``."""
    if not isinstance(loss, kind):
        raise UserError(f"loss: method={method} takes loss={method}, not a {type(loss).__name__}")
