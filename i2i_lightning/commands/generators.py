"""The generator that ``generator=`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.networks.style import StyleGenerator


def named_generator(node: DictConfig) -> StyleGenerator:
    """Build the style-based generator of a config's ``generator`` node.

    Raises:
        UserError: If it cannot be loaded: names the key, which whoever loads does not know.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from i2i_lightning.types import UserError

    try:
        generator: Any = instantiate(node, _convert_="all")
    except InstantiationException as error:
        slip = error.__cause__
        if isinstance(slip, UserError) and str(slip).startswith(node.path):
            raise UserError(f"generator={slip}") from None
        raise
    return generator  # type: ignore[no-any-return]
