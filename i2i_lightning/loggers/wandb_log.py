"""Weights & Biases, if it is asked for: offline by itself where there is no key, and never a prompt."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from i2i_lightning.types import UserError

MODES = ("online", "offline", "disabled")


class FinishingWandbLogger(WandbLogger):
    """Lightning's W&B logger, which also finishes its run.

    Without that, a second run of the same process (a sweep's next job) would go on writing into the first.
    """

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish the run; a later stage of the same trainer continues it under the same id."""
        super().finalize(status)
        if self._experiment is None:
            return
        self._id = self._wandb_init["id"] = self._experiment.id
        self._experiment.finish(exit_code=0 if status == "success" else 1)
        self._experiment = None


def wandb_log(
    save_dir: str | os.PathLike[str],
    project: str = "i2i_lightning",
    name: str | None = None,
    mode: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    entity: str | None = None,
    run_id: str | None = None,
) -> FinishingWandbLogger:
    """Return a Lightning logger that writes a W&B run into ``<save_dir>/wandb``.

    Args:
        save_dir: The run folder.
        project: W&B project.
        name: Shown name of the run; None takes the last two folders of ``save_dir``: experiment and time.
        mode: online, offline or disabled; None takes ``WANDB_MODE`` from the environment or, without one,
            online if a key is configured and offline otherwise. An offline run is sent later with ``wandb
            sync``.
        group: Group that the run belongs to, a sweep for instance.
        tags: Tags of the run.
        notes: A longer description.
        entity: User or team; None for the key's own.
        run_id: Identity of the run; give the same one to continue it.

    Raises:
        UserError: If wandb is not installed, the mode is unknown, or online is asked for without a key.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "logger=wandb needs the package wandb, not installed here: pip install 'i2i_lightning[wandb]'\n"
            "or leave it out: metrics.csv and index.html are written in any case"
        ) from error
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode not in MODES:
        raise UserError(
            f"logger.wandb.mode={mode}: give one of {', '.join(MODES)}, or null to choose by the key"
        )
    if mode == "online" and not has_key():
        raise UserError(
            "logger.wandb.mode=online needs a key: set WANDB_API_KEY or run 'wandb login'\n"
            "or give logger.wandb.mode=offline, and send the run later with 'wandb sync'"
        )
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return FinishingWandbLogger(
        project=project,
        name=name or "/".join(folder.resolve().parts[-2:]),
        save_dir=str(folder),
        version=run_id,
        # Lightning's own offline switch forbids artifacts; the mode is W&B's way and does not.
        mode=mode,
        group=group,
        tags=list(tags),
        notes=notes,
        entity=entity,
        settings=wandb.Settings(silent=True, console="off"),
    )


def has_key() -> bool:
    """Say whether W&B would find a key without asking: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    path = os.environ.get("NETRC")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
