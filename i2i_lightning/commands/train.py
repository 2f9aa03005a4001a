"""``i2i-train``: build what the config names, and fit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from i2i_lightning.cli.app import App, is_first_process

if TYPE_CHECKING:
    from i2i_lightning.cli.record import Run
    from i2i_lightning.commands.fitting import Parts


def train(run: Run) -> None:
    """Train what ``run.config`` describes into the run folder, or continue there from ``run.checkpoint``."""
    from i2i_lightning.commands.fitting import fit

    fit(run, _parts)


def _parts(run: Run) -> Parts:
    """Build data and method; check that the method can take the checkpoint, or fill it for a warm start."""
    from hydra.utils import instantiate

    from i2i_lightning.checkpoints.io import check_networks, read_checkpoint
    from i2i_lightning.checkpoints.warm_start import warm_start
    from i2i_lightning.cli import record

    config = run.config
    datamodule = instantiate(config.data, _convert_="all")
    method = instantiate(config.method, _convert_="all")
    if run.checkpoint is not None:
        saved = read_checkpoint(run.checkpoint)["state_dict"]
        check_networks(method, saved, f"resume={record.shown(run.checkpoint)}")
    elif config.warm_start is not None:
        filled = warm_start(method, config.warm_start)
        if is_first_process():
            print(filled, flush=True)
    return datamodule, method


APP = App(program="i2i-train", config_name="train", task=train, default_experiment="pix2pix_toy")


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
