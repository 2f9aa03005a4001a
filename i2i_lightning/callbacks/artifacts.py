"""Checkpoints and the gallery as artifacts of a tracking service, and where a run's weights came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.readings import batches_trained

Kind = Literal["last", "best", "epochs"]


class Artifacts(Callback):
    """Hand checkpoints and the gallery to W&B when a run is over; other loggers take no files.

    A checkpoint is one version of the artifact ``checkpoint-<run id>``, with the aliases ``last``, ``best``
    and ``epoch_<n>`` that are true of it: a file that is the last and the best is sent once. A run that is
    interrupted or fails sends none, since it has little time and will be continued; its page is sent.

    The checkpoint that a run begins or goes on from is recorded as its input, without being sent.

    Args:
        checkpoints: Which to send: ``last``, ``best``, and ``epochs`` for those that
            ``callbacks.checkpoints.keep_every_n_epochs`` keeps. An empty list sends none.
        gallery: Whether to send the run's page and the grids of previews.
        warm_start: Checkpoint that a new run's weights come from.
    """

    def __init__(
        self,
        checkpoints: Sequence[Kind] = ("last", "best"),
        gallery: bool = True,
        warm_start: str | None = None,
    ) -> None:
        self.checkpoints = tuple(checkpoints)
        self.gallery = gallery
        self.warm_start = warm_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the run goes on from."""
        source, role = (trainer.ckpt_path, "resume") if trainer.ckpt_path else (self.warm_start, "warm_start")
        if source is None or not Path(source).is_file():
            return
        for logger in trainer.loggers:
            if hasattr(logger, "use_checkpoint"):
                logger.use_checkpoint(Path(source), role)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Send the page, which says why the run stopped, and tell whether it will be started again."""
        for logger in trainer.loggers:
            if getattr(exception, "requeued", False) and hasattr(logger, "mark_preempting"):
                logger.mark_preempting()
        if trainer.state.fn == "fit":
            self._send_gallery(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send what a finished run leaves behind; its page has just been written for the last time."""
        if stage == "fit" and trainer.is_global_zero:
            self._send_checkpoints(trainer)
            self._send_gallery(trainer)

    def _send_checkpoints(self, trainer: Trainer) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        keeper = next((callback for callback in callbacks if isinstance(callback, Checkpoints)), None)
        if keeper is None:
            return
        epochs = {"last": trainer.current_epoch, "best": keeper.best_epoch}
        names: dict[tuple[int, int], list[str]] = {}
        paths: dict[tuple[int, int], Path] = {}
        found: list[tuple[str, Path, int | None]] = [
            (name, keeper.folder(trainer) / f"{name}.ckpt", epochs[name])
            for name in ("last", "best")
            if name in self.checkpoints
        ]
        if "epochs" in self.checkpoints:
            found += [
                (f"epoch_{int(path.stem.removeprefix('epoch_'))}", path, None)
                for path in sorted(keeper.folder(trainer).glob("epoch_*.ckpt"))
            ]
        for name, path, epoch in found:
            if not path.is_file():
                continue
            state = path.stat()
            # Files that are one on the disk are one version; copies are recognised by W&B itself.
            same = (state.st_dev, state.st_ino)
            paths.setdefault(same, path)
            aliases = names.setdefault(same, [])
            aliases += [name] if epoch is None else [name, f"epoch_{epoch}"]
        for same, aliases in names.items():
            facts: dict[str, Any] = {"batches": batches_trained(trainer)} if "last" in aliases else {}
            if "best" in aliases and keeper.best_value is not None:
                facts[str(keeper.monitor)] = keeper.best_value
            self._send(
                trainer, "checkpoint", {"checkpoint.ckpt": paths[same]}, list(dict.fromkeys(aliases)), facts
            )
        if keeper.best_value is not None:
            for logger in trainer.loggers:
                if hasattr(logger, "note"):
                    logger.note(
                        {"best/epoch": keeper.best_epoch, f"best/{keeper.monitor}": keeper.best_value}
                    )

    def _send_gallery(self, trainer: Trainer) -> None:
        run = Path(trainer.default_root_dir)
        if not self.gallery or not trainer.is_global_zero or not (run / "index.html").is_file():
            return
        files = [run / "index.html", run / "report.json", *sorted((run / "images").glob("epoch_*.png"))]
        named = {str(path.relative_to(run)): path for path in files if path.is_file()}
        self._send(trainer, "gallery", named, ["last", f"epoch_{trainer.current_epoch}"], {})

    @staticmethod
    def _send(
        trainer: Trainer, kind: str, files: dict[str, Path], aliases: list[str], facts: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "log_files"):
                logger.log_files(kind, files, aliases, facts)
