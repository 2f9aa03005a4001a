"""TensorBoard, if it is asked for: curves and pictures in the run folder."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from i2i_lightning.loggers.pictures import checked
from i2i_lightning.types import UserError


class TensorBoardLog(Logger):
    """Write TensorBoard's event files into ``<save_dir>/tensorboard``: ``tensorboard --logdir outputs``.

    The step is the number of the batch, as in ``metrics.csv``. Of a run that is continued TensorBoard shows
    what came before the first step logged then, and nothing twice.

    Args:
        save_dir: The run folder.

    Raises:
        UserError: If tensorboard is not installed.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        try:
            import tensorboard  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard, not installed here: "
                "pip install 'i2i_lightning[tensorboard]'\n"
                "or leave it out: metrics.csv and index.html are written in any case"
            ) from error
        self.path = Path(save_dir) / "tensorboard"
        self._writer: Any = None
        self._config: dict[str, Any] = {}
        self._step = 0

    @property
    def name(self) -> str:
        """The folder's name; part of no path."""
        return self.path.name

    @property
    def version(self) -> str:
        """A run folder has one log."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    def _at(self, step: int | None) -> tuple[Any, int]:
        """Return the writer, opened at the first step, and the step: the last one if none is given."""
        self._step = self._step if step is None else step
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Steps from here on that an earlier part of this run has written are not shown.
            continued = self.path.is_dir() and any(self.path.iterdir())
            self._writer = SummaryWriter(str(self.path), purge_step=self._step if continued else None)
            if self._config:
                text = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
                self._writer.add_text("config", f"```yaml\n{text}```", self._step)
        return self._writer, self._step

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep plain containers, to be written as text with the first numbers."""
        self._config |= vars(params) if isinstance(params, Namespace) else dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write numbers under ``step``."""
        writer, at = self._at(step)
        for name, value in metrics.items():
            writer.add_scalar(name, float(value), at)

    @rank_zero_only
    def log_image(
        self, key: str, images: Sequence[Any], step: int | None = None, caption: Sequence[str] | None = None
    ) -> None:
        """Write pictures, each uint8 (H, W, 3), under ``step``; TensorBoard shows no captions."""
        writer, at = self._at(step)
        for index, pixels in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{index}"
            writer.add_image(name, checked(pixels, key), at, dataformats="HWC")

    @rank_zero_only
    def save(self) -> None:
        """Hand what is pending to the operating system."""
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when a process is spawned."""
        return {**self.__dict__, "_writer": None}
