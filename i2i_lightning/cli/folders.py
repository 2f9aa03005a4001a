"""Where the config files lie and what they are called. Imports the standard library alone, for ``--help``."""

from __future__ import annotations

from pathlib import Path

from i2i_lightning.cli.words import natural


def conf_dir() -> Path:
    """Return the folder of the config files: the installed one, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no config files beside {package}: the installation is incomplete, install it again"
    )


def group_names(conf: Path) -> list[str]:
    """Return the names of the config groups under ``conf``; ``hydra`` holds Hydra's own."""
    return sorted(folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name != "hydra")


def group_options(conf: Path, group: str) -> list[str]:
    """Return the options of ``group`` in a person's order: ``unet_64`` before ``unet_128``."""
    return sorted((file.stem for file in (conf / group).glob("*.yaml")), key=natural)
