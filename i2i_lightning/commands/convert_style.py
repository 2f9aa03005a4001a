"""What ``i2i-convert`` does with a file that has a style-based generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.checkpoints.export import Written
    from i2i_lightning.checkpoints.style.export import StyleFormat
    from i2i_lightning.checkpoints.style.load import StyleFile
    from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator


def convert_style(style: StyleFile, config: DictConfig) -> tuple[StyleFormat, Written]:
    """Convert a network of ``style``; return in which format, and what was written.

    Raises:
        UserError: If it cannot be, or a value of the config is impossible.
    """
    from i2i_lightning.checkpoints.style.export import write_rosinality, write_style_safetensors
    from i2i_lightning.checkpoints.style.load import describe_style
    from i2i_lightning.checkpoints.style.rosinality import check_layout
    from i2i_lightning.cli import record
    from i2i_lightning.commands.output import check_file
    from i2i_lightning.networks.style import StyleGenerator

    output = check_file(config.output, config.overwrite, "generator.safetensors")
    format = _format(style, output, config)
    judge = config.network == "discriminator"
    _, loaded = style.discriminator() if judge else style.generator(config.averaged)
    told = [describe_style(loaded.network), *loaded.notes]
    if loaded.averaged:
        told.insert(1, "moving average of the weights")
    print(f"Read {record.shown(Path(style.where))}: {style.words}\n  {'; '.join(told)}", flush=True)
    if format == "safetensors":
        return format, write_style_safetensors(loaded, output, style.where)
    assert isinstance(loaded.network, StyleGenerator)
    check_layout(loaded.network, style.where)
    return format, write_rosinality(loaded, _beside(style, config), output, style.where)


def _format(style: StyleFile, output: Path, config: DictConfig) -> StyleFormat:
    """Return the format to write.

    Raises:
        UserError: If there is no such format, or another key has a value that none has.
    """
    from i2i_lightning.checkpoints.style.export import STYLE_SUFFIXES
    from i2i_lightning.data.checks import check_choice
    from i2i_lightning.types import UserError

    for key in ("direction", "dropout", "test_mode"):
        if config[key] is not None:
            raise UserError(f"{key}={config[key]}: {style.where} holds {style.words}; leave {key} out")
    for key, choices in (
        ("format", tuple(STYLE_SUFFIXES.values())),
        ("network", ("generator", "discriminator")),
    ):
        if config[key] is not None:
            check_choice(key, config[key], choices)
    format: StyleFormat | None = config.format or STYLE_SUFFIXES.get(output.suffix.lower())
    if format is None:
        raise UserError(
            f"output={config.output}: its suffix tells no format that a style-based generator has; "
            f"take one of {', '.join(STYLE_SUFFIXES)}"
        )
    if format == "rosinality" and config.network == "discriminator":
        raise UserError("network=discriminator: format=rosinality holds it beside the generator")
    return format


def _beside(style: StyleFile, config: DictConfig) -> StyleGAN2Discriminator | None:
    """Return the discriminator that is to stand beside a generator, None for none.

    Raises:
        UserError: If it is damaged, or not one that this project has.
    """
    from i2i_lightning.types import UserError

    if config.network == "generator":
        return None
    try:
        return style.discriminator()[0] if style.has_discriminator() else None
    except UserError as error:
        raise UserError(f"{error}; network=generator leaves the discriminator out") from error
