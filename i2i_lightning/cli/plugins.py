"""The project's own Hydra plugins: how a sweep chooses its jobs, and where they run."""

from __future__ import annotations

from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

from i2i_lightning.cli.optuna_sweeper import OptunaSweeper
from i2i_lightning.cli.slurm import SlurmLauncher

PLUGINS: tuple[type[Plugin], ...] = (OptunaSweeper, SlurmLauncher)

PACKAGE = "hydra_plugins.i2i_lightning"
"""Where a config has to look for them (``_target_: hydra_plugins.i2i_lightning.OptunaSweeper``): Hydra builds
no plugin whose path begins otherwise."""


def register() -> None:
    """Make the plugins known to Hydra. Calling it again changes nothing."""
    plugins = Plugins.instance()
    for plugin in PLUGINS:
        plugins.register(plugin)
        plugins.class_name_to_class[f"{PACKAGE}.{plugin.__name__}"] = plugin
