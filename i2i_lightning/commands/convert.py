"""``i2i-convert``: write a trained network in another format, and say what it was and what was written."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from i2i_lightning.cli.app import App

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.checkpoints.architecture import Role
    from i2i_lightning.checkpoints.contents import Contents, SavedNetwork
    from i2i_lightning.checkpoints.export import Format, Written
    from i2i_lightning.checkpoints.style.load import StyleFile
    from i2i_lightning.cli.record import Run
    from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator

WORDS = {
    "reference": "the layout of junyanz/pytorch-CycleGAN-and-pix2pix",
    "safetensors": "safetensors",
    "torchscript": "TorchScript",
    "onnx": "ONNX",
    "lightning": "a checkpoint of i2i_lightning",
    "rosinality": "the layout of rosinality/stylegan2-pytorch",
}
"""What each format, or source, is called in print."""


def convert(run: Run) -> None:
    """Convert what ``run.config`` names."""
    from i2i_lightning.checkpoints.contents import read_contents
    from i2i_lightning.checkpoints.style.load import find_style
    from i2i_lightning.cli import record
    from i2i_lightning.translation.translator import find_checkpoint

    config = run.config
    output = Path(config.output).expanduser()
    style = find_style(config.checkpoint)
    if style is not None:
        _convert_style(style, output, config)
        return
    format = _format(config, output)
    checkpoint = find_checkpoint(config.checkpoint)
    contents = read_contents(checkpoint, config.dropout)
    networks = [_as_asked(network, config) for network in _chosen(contents, checkpoint, config, format)]
    print(f"Read {record.shown(checkpoint)}: {_source(contents)}")
    for network in networks:
        print(f"  {_in_words(network, contents, config)}", flush=True)
    written = _write(networks, format, output, str(checkpoint))
    print(f"Wrote {record.shown(output)}: {WORDS[format]}, {_size(written.bytes)}")
    for note in written.notes:
        print(f"  {note}")


def _convert_style(style: StyleFile, output: Path, config: DictConfig) -> None:
    """Convert a file with a style-based generator."""
    from i2i_lightning.checkpoints.style.export import (
        STYLE_SUFFIXES,
        write_rosinality,
        write_style_safetensors,
    )
    from i2i_lightning.checkpoints.style.load import describe_style
    from i2i_lightning.checkpoints.style.rosinality import check_layout
    from i2i_lightning.cli import record
    from i2i_lightning.data.checks import check_choice
    from i2i_lightning.networks.style import StyleGenerator
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
    _check_file(output, config, "generator.safetensors")
    format = config.format or STYLE_SUFFIXES.get(output.suffix.lower())
    if format is None:
        raise UserError(
            f"output={config.output}: its suffix tells no format that a style-based generator has; "
            f"take one of {', '.join(STYLE_SUFFIXES)}"
        )
    _check_free(output, config)
    judge = config.network == "discriminator"
    if judge and format == "rosinality":
        raise UserError("network=discriminator: format=rosinality holds it beside the generator")
    _, loaded = style.discriminator() if judge else style.generator(config.averaged)
    told = [describe_style(loaded.network), *loaded.notes]
    if loaded.averaged:
        told.insert(1, "moving average of the weights")
    print(f"Read {record.shown(Path(style.where))}: {style.words}\n  {'; '.join(told)}", flush=True)
    if format == "rosinality":
        assert isinstance(loaded.network, StyleGenerator)
        check_layout(loaded.network, style.where)
        written = write_rosinality(loaded, _beside(style, config), output, style.where)
    else:
        written = write_style_safetensors(loaded, output, style.where)
    print(f"Wrote {record.shown(output)}: {WORDS[format]}, {_size(written.bytes)}")
    for note in written.notes:
        print(f"  {note}")


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


def _format(config: DictConfig, output: Path) -> Format:
    """Return the format to write, once it is clear that ``output`` may be written.

    Raises:
        UserError: If there is no such format, or something is there already.
    """
    from i2i_lightning.checkpoints.export import SUFFIXES
    from i2i_lightning.data.checks import check_choice
    from i2i_lightning.types import UserError

    if config.format == "rosinality":
        raise UserError(f"format=rosinality: {config.checkpoint} holds no style-based generator")
    for key, choices in (
        ("format", tuple(dict.fromkeys(SUFFIXES.values()))),
        ("network", ("generator", "discriminator")),
        ("direction", ("ab", "ba")),
        ("test_mode", ("train", "eval")),
    ):
        if config[key] is not None:
            check_choice(key, config[key], choices)
    _check_file(output, config, "latest_net_G.pth")
    format: Format | None = config.format or SUFFIXES.get(output.suffix.lower())
    if format is None:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"output={config.output}: its suffix tells no format; take one of {known}, or give format="
        )
    _check_free(output, config)
    return format


def _check_file(output: Path, config: DictConfig, example: str) -> None:
    """Raise ``UserError`` if ``output`` is a folder."""
    from i2i_lightning.types import UserError

    if output.is_dir():
        raise UserError(f"output={config.output}: a folder; give a file, such as {output / example}")


def _check_free(output: Path, config: DictConfig) -> None:
    """Raise ``UserError`` if ``output`` is there and may not be replaced."""
    from i2i_lightning.types import UserError

    if output.exists() and not config.overwrite:
        raise UserError(f"output={config.output}: is there already; overwrite=true replaces it")


def _chosen(contents: Contents, path: Path, config: DictConfig, format: str) -> list[SavedNetwork]:
    """Return the networks to write: one, or for a checkpoint of ours all that fit what was asked."""
    from i2i_lightning.checkpoints.load import choose

    roles = {network.role for network in contents.networks}
    role: Role = config.network or ("generator" if "generator" in roles else "discriminator")
    one, _ = choose(contents, path, role, config.direction)
    if format != "lightning":
        return [one]
    return [
        network
        for network in contents.networks
        if config.network in (None, network.role) and config.direction in (None, network.direction)
    ]


def _as_asked(network: SavedNetwork, config: DictConfig) -> SavedNetwork:
    """Return ``network`` with the weights and the test mode that were asked for."""
    state = network.average if config.averaged and network.average is not None else network.state
    return replace(network, state=state, average=None, test_mode=config.test_mode or network.test_mode)


def _size(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _source(contents: Contents) -> str:
    return WORDS["lightning" if contents.source == "i2i_lightning" else contents.source]


def _in_words(network: SavedNetwork, contents: Contents, config: DictConfig) -> str:
    """Describe what the file was recognised as, with what was assumed or left behind."""
    from i2i_lightning.checkpoints.architecture import describe

    words = [describe(network.architecture)]
    if network.direction is not None:
        others = [other.direction for other in contents.networks if other.role == network.role]
        also = [other for other in others if other not in (None, network.direction)]
        words.append(
            f"direction {network.direction}"
            + (f" (it also holds {', '.join(map(str, also))})" if also else "")
        )
    had = next(other for other in contents.networks if other.name == network.name)
    if had.average is not None:
        words.append(
            "moving average of the weights" if config.averaged else "last weights, not their average"
        )
    if contents.source == "reference" and "num_downs" in network.architecture and config.dropout is None:
        words.append("dropout assumed (no weights tell)")
    return "; ".join(words)


def _write(networks: list[SavedNetwork], format: Format, output: Path, origin: str) -> Written:
    from i2i_lightning.checkpoints import export

    if format == "lightning":
        return export.write_checkpoint(networks, output, origin)
    write = {
        "reference": export.write_reference,
        "safetensors": export.write_safetensors,
        "torchscript": export.write_torchscript,
        "onnx": export.write_onnx,
    }[format]
    return write(networks[0], output, origin)


APP = App(program="i2i-convert", config_name="convert", task=convert, keeps_run=False)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
