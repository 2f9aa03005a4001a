"""The generator that ``generator=`` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.checkpoints.style.load import LoadedStyle
    from i2i_lightning.networks.style import StyleGenerator


def open_generator(path: str) -> tuple[StyleGenerator, LoadedStyle]:
    """Load a style-based generator, and what its file says of it.

    Raises:
        UserError: If it cannot be loaded: names the key, which whoever loads does not know.
    """
    from i2i_lightning.checkpoints.style.load import open_style

    with _named(path):
        return open_style(path).generator()


def named_generator(node: DictConfig) -> StyleGenerator:
    """Build the style-based generator of a config's ``generator`` node.

    Raises:
        UserError: As :func:`open_generator`.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from i2i_lightning.types import UserError

    with _named(node.path):
        try:
            generator: Any = instantiate(node, _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
    return generator  # type: ignore[no-any-return]


@contextmanager
def _named(path: str) -> Iterator[None]:
    from i2i_lightning.types import UserError

    try:
        yield
    except UserError as error:
        key = "generator=" if str(error).startswith(path) else ""
        raise UserError(f"{key}{error}") from None
