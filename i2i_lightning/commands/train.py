"""``i2i-train``: compose, check, build, fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App, is_first_process

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(config: DictConfig, folder: Path) -> None:
    """Train what ``config`` describes into the run folder ``folder``, or continue there where it says so."""
    from hydra.utils import instantiate
    from lightning import seed_everything
    from lightning.pytorch.callbacks import LambdaCallback
    from omegaconf import OmegaConf

    from i2i_lightning.checkpoints.io import warm_start
    from i2i_lightning.cli import record
    from i2i_lightning.types import UserError

    if config.resume is not None and config.warm_start is not None:
        raise UserError(
            "warm_start: a resumed run goes on from its own checkpoint; give either resume or warm_start"
        )
    checkpoint = None if config.resume is None else str(record.find_run(config.resume)[1])

    seed_everything(config.seed, workers=True, verbose=False)
    datamodule = instantiate(config.data, _convert_="all")
    method = instantiate(config.method, _convert_="all")
    method.config = OmegaConf.to_container(config.method, resolve=True)
    if config.warm_start is not None:
        warm_start(method, config.warm_start)

    def keep_records(*_: Any) -> None:
        """Note a continuation once its data and checkpoint have loaded: now it is part of the run."""
        if config.resume is not None and is_first_process():
            record.continued(folder, overrides(), config)

    callbacks = [*entries(config.callbacks), LambdaCallback(on_train_start=keep_records)]
    trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=entries(config.logger),
        default_root_dir=str(folder),
        _convert_="all",
    )
    if config.resume is None and is_first_process():
        record.start(folder, config)
    trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint)
    if is_first_process():
        gallery = folder / "index.html"
        print(
            f"Gallery: {record.shown(gallery)}"
            if gallery.is_file()
            else f"Run folder: {record.shown(folder)}"
        )


def entries(group: DictConfig | None) -> list[Any]:
    """Build the nodes of a group that maps names to nodes; ``null`` leaves one out."""
    from hydra.utils import instantiate

    return [instantiate(node, _convert_="all") for node in (group or {}).values() if node is not None]


def overrides() -> list[str]:
    """Return this run's overrides from the command line, without those that say which run to resume."""
    from hydra.core.hydra_config import HydraConfig

    return [word for word in HydraConfig.get().overrides.task if not word.startswith("resume=")]


APP = App(program="i2i-train", config_name="train", task=train, default_experiment="pix2pix_toyfaces")


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
