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
    from i2i_lightning.cli.record import Run

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
    from i2i_lightning.checkpoints.style.load import find_style
    from i2i_lightning.cli import record
    from i2i_lightning.commands.convert_style import convert_style

    style = find_style(run.config.checkpoint)
    format, written = _convert(run.config) if style is None else convert_style(style, run.config)
    print(f"Wrote {record.shown(written.path)}: {WORDS[format]}, {_size(written.bytes)}")
    for note in written.notes:
        print(f"  {note}")


def _convert(config: DictConfig) -> tuple[Format, Written]:
    """Convert a file with networks that translate; return in which format, and what was written."""
    from i2i_lightning.checkpoints.contents import read_contents
    from i2i_lightning.cli import record
    from i2i_lightning.commands.output import check_file
    from i2i_lightning.translation.translator import find_checkpoint

    output = check_file(config.output, config.overwrite, "latest_net_G.pth")
    format = _format(config, output)
    checkpoint = find_checkpoint(config.checkpoint)
    contents = read_contents(checkpoint, config.dropout)
    networks = [_as_asked(network, config) for network in _chosen(contents, checkpoint, config, format)]
    print(f"Read {record.shown(checkpoint)}: {_source(contents)}")
    for network in networks:
        print(f"  {_in_words(network, contents, config)}", flush=True)
    return format, _write(networks, format, output, str(checkpoint))


def _format(config: DictConfig, output: Path) -> Format:
    """Return the format to write.

    Raises:
        UserError: If there is no such format, or another key has a value that none has.
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
    format: Format | None = config.format or SUFFIXES.get(output.suffix.lower())
    if format is None:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"output={config.output}: its suffix tells no format; take one of {known}, or give format="
        )
    return format


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
