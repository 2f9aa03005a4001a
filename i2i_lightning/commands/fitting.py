"""What every command does that fits: build what the config names, record the run, and let Lightning work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import is_first_process

if TYPE_CHECKING:
    from pathlib import Path

    from lightning import LightningDataModule, Trainer
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from omegaconf import DictConfig

    from i2i_lightning.cli.record import Run
    from i2i_lightning.methods.base import Method

Parts = tuple["LightningDataModule", "Method"]


def fit(run: Run, build: Callable[[Run], Parts]) -> None:
    """Fit what ``run.config`` describes into the run folder, or continue there from ``run.checkpoint``.

    Args:
        run: The run.
        build: Returns the data and the method, after a check that they can take the checkpoint.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from lightning import seed_everything
    from lightning.pytorch.callbacks import ProgressBar
    from omegaconf import OmegaConf

    from i2i_lightning.cli import record
    from i2i_lightning.cli.recorder import Recorder
    from i2i_lightning.cli.study import trial_report
    from i2i_lightning.loggers.guard import GuardedLogger
    from i2i_lightning.strategies.cluster import cluster_environment, meet
    from i2i_lightning.strategies.ranks import ending_together
    from i2i_lightning.types import UserError

    config = run.config
    seed_everything(config.seed, workers=True, verbose=False)
    environment = cluster_environment()
    callbacks = entries(config.callbacks)
    if config.sweep is not None and config.sweep.trial is not None:
        # First, so that the checkpoint is written after it asked for a stop.
        callbacks.insert(0, trial_report(config, run.folder.parent))
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    # Spawned processes unpickle the callbacks; the lock stays with the process that holds it.
    callbacks.append(Recorder(replace(run, lock=None)))
    loggers = [GuardedLogger(logger) for logger in entries(config.logger)]
    trainer = build_trainer(config, environment, callbacks, loggers, run.folder)
    if (
        HydraConfig.get().mode == RunMode.MULTIRUN
        and "Subprocess" in type(trainer.strategy.launcher).__name__
    ):
        raise UserError(
            f"trainer.devices={config.trainer.devices}: each process would run the whole sweep again; "
            "sweep over one device, or take launcher=slurm or trainer=ddp_spawn"
        )
    datamodule, method = build(run)
    method.config = OmegaConf.to_container(config.method, resolve=True)  # type: ignore[assignment]

    meet(environment)
    if is_first_process():
        if not run.started:
            record.start(run)
        record.tidy(run)
        for logger in trainer.loggers:
            logger.log_hyperparams(record.description(run))
    with ending_together(trainer):
        trainer.fit(method, datamodule=datamodule, ckpt_path=run.checkpoint)
    if is_first_process():
        gallery = run.folder / "index.html"
        print(
            f"Gallery: {record.shown(gallery)}" if gallery.is_file() else f"Run: {record.shown(run.folder)}"
        )


def build_trainer(
    config: DictConfig,
    environment: ClusterEnvironment | None,
    callbacks: list[Any],
    loggers: list[Any],
    folder: Path,
) -> Trainer:
    """Build the trainer for the devices, the processes and the number format that ``config`` names.

    Args:
        config: The whole config.
        environment: What started this process and knows the others; None for Lightning's own.
        callbacks: What watches the run.
        loggers: Where it logs.
        folder: The run folder.

    Raises:
        UserError: If this machine cannot do what is asked.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from i2i_lightning.strategies.cluster import SlurmTasks, trainer_settings
    from i2i_lightning.strategies.devices import check_devices
    from i2i_lightning.strategies.sync_batchnorm import SynchronizedNorms
    from i2i_lightning.types import UserError

    if config.precision is None:
        raise UserError("precision=null: give fp32, tf32, bf16, fp16 or fp64")
    precision = instantiate(config.precision, _convert_="all")
    wanted: Any = OmegaConf.to_container(config.trainer, resolve=True)
    settings = trainer_settings(environment, *(wanted[key] for key in ("devices", "num_nodes", "strategy")))
    hardware = {key: (wanted | settings)[key] for key in ("accelerator", "devices", "num_nodes", "strategy")}
    check_devices(**hardware, precision=precision.precision, clustered=isinstance(environment, SlurmTasks))
    norms = SynchronizedNorms() if config.trainer.sync_batchnorm else None
    trainer: Trainer = instantiate(
        config.trainer,
        **settings,
        plugins=[plugin for plugin in (precision, environment, norms) if plugin is not None],
        sync_batchnorm=False,  # this would add Lightning's, which refuses CPUs
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(folder),
        _convert_="all",
    )
    return trainer


def entries(group: DictConfig | None) -> list[Any]:
    """Build the nodes of a group that maps names to nodes; ``null`` leaves one out."""
    from hydra.utils import instantiate

    return [instantiate(node, _convert_="all") for node in (group or {}).values() if node is not None]
