"""``i2i-train``: build what the config names, and fit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App, is_first_process

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.cli.record import Run


def train(run: Run) -> None:
    """Train what ``run.config`` describes into the run folder, or continue there from ``run.checkpoint``."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from hydra.utils import instantiate
    from lightning import seed_everything
    from lightning.pytorch.callbacks import LambdaCallback, ProgressBar
    from omegaconf import OmegaConf

    from i2i_lightning.checkpoints.io import check_networks, read_checkpoint
    from i2i_lightning.checkpoints.warm_start import warm_start
    from i2i_lightning.cli import record
    from i2i_lightning.types import UserError

    config = run.config
    seed_everything(config.seed, workers=True, verbose=False)
    datamodule = instantiate(config.data, _convert_="all")
    method = instantiate(config.method, _convert_="all")
    method.config = OmegaConf.to_container(config.method, resolve=True)
    if run.checkpoint is not None:
        saved = read_checkpoint(run.checkpoint)["state_dict"]
        check_networks(method, saved, f"resume={record.shown(run.checkpoint)}")
    elif config.warm_start is not None:
        filled = warm_start(method, config.warm_start)
        if is_first_process():
            print(filled, flush=True)

    began = []

    def on_train_start(*_: Any) -> None:
        """Note a continuation only now: its data and checkpoint have loaded, and it has epochs to train."""
        began.append(True)
        if run.checkpoint is not None and is_first_process():
            record.continued(run)

    callbacks = entries(config.callbacks)
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks, LambdaCallback(on_train_start=on_train_start)],
        logger=entries(config.logger),
        default_root_dir=str(run.folder),
        _convert_="all",
    )
    if (
        HydraConfig.get().mode == RunMode.MULTIRUN
        and "Subprocess" in type(trainer.strategy.launcher).__name__
    ):
        raise UserError(
            f"trainer.devices={config.trainer.devices}: each process would run the whole sweep again; "
            "sweep over one device, or take trainer.strategy=ddp_spawn_find_unused_parameters_true"
        )
    if run.checkpoint is None and is_first_process():
        record.start(run)
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=run.checkpoint)
    except SystemExit as stop:  # how Lightning ends on Ctrl+C, after its callbacks have tidied up
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt(record.how_to_continue(run.folder)) from stop
    if is_first_process():
        if not began and run.checkpoint is not None:
            print(
                f"All {trainer.max_epochs} epochs are trained already; for more give trainer.max_epochs=..."
            )
        gallery = run.folder / "index.html"
        print(
            f"Gallery: {record.shown(gallery)}" if gallery.is_file() else f"Run: {record.shown(run.folder)}"
        )


def entries(group: DictConfig | None) -> list[Any]:
    """Build the nodes of a group that maps names to nodes; ``null`` leaves one out."""
    from hydra.utils import instantiate

    return [instantiate(node, _convert_="all") for node in (group or {}).values() if node is not None]


APP = App(program="i2i-train", config_name="train", task=train, default_experiment="pix2pix_toyfaces")


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
