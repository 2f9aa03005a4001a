"""Write a style-based network anew: as safetensors that describe themselves, or in rosinality's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from i2i_lightning import __version__
from i2i_lightning.checkpoints.export import Written
from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.checkpoints.style import rosinality
from i2i_lightning.checkpoints.style.load import LoadedStyle
from i2i_lightning.checkpoints.style.native import (
    AVERAGED,
    save_style_discriminator,
    save_style_generator,
)
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator

StyleFormat = Literal["safetensors", "rosinality"]

STYLE_SUFFIXES: dict[str, StyleFormat] = {".safetensors": "safetensors", ".pt": "rosinality"}


def write_style_safetensors(loaded: LoadedStyle, path: Path, origin: str) -> Written:
    """Write a network with its config, and with what is known of its making.

    Args:
        loaded: The network.
        path: Where to.
        origin: Name of the file that it was read from.

    Raises:
        UserError: If the file cannot be written.
    """
    provenance: dict[str, Any] = {
        **(loaded.provenance or {}),
        "made_from": Path(origin).name,
        "recognised_as": loaded.words,
        "written_by": f"i2i_lightning {__version__}",
    }
    if loaded.averaged:
        provenance[AVERAGED] = True
    if loaded.notes:
        provenance["notes"] = list(loaded.notes)
    if isinstance(loaded.network, StyleGenerator):
        save_style_generator(path, loaded.network, provenance)
    else:
        save_style_discriminator(path, loaded.network, provenance)
    return Written(path, path.stat().st_size, ())


def write_rosinality(
    loaded: LoadedStyle, discriminator: StyleGAN2Discriminator | None, path: Path, origin: str
) -> Written:
    """Write a generator as a checkpoint of rosinality/stylegan2-pytorch: ``g_ema``, ``latent_avg``, ``d``.

    Args:
        loaded: The generator.
        discriminator: Its discriminator, for training on; left out if that project has no such one.
        path: Where to.
        origin: The file that it was read from, for messages.

    Raises:
        UserError: If that project has no such generator, or the file cannot be written.
    """
    assert isinstance(loaded.network, StyleGenerator)
    held, notes = rosinality.layout(loaded.network, discriminator, origin, loaded.averaged)
    write_beside(path, lambda file: torch.save(held, file))
    return Written(path, path.stat().st_size, tuple(notes))
