"""Weights & Biases, if it is asked for: offline by itself where there is no key, and never a prompt."""

from __future__ import annotations

import json
import logging
import netrc
import os
import re
import secrets
import shutil
import string
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from i2i_lightning.loggers.csv_log import FIRST_COLUMNS, read_rows
from i2i_lightning.loggers.pictures import PREVIEW, checked, preview_caption, preview_file
from i2i_lightning.loggers.wandb_file import last_step
from i2i_lightning.types import UserError

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
AXIS = "batch"
"""The horizontal axis of every chart: the number of the batch in the run, as in ``metrics.csv``."""
TYPES = {"checkpoint": "model"}
"""What W&B calls a kind of artifact, where it has a name for it: its registry takes models alone."""
ID_LENGTH = 8
MAX_TAG_LENGTH = 64
"""W&B refuses longer tags, and with them the run."""
INIT_TIMEOUT_S = 10.0
FINISH_TIMEOUT_S = 600.0
FLUSH_INTERVAL_S = 1.0
"""W&B keeps what it is told in memory for so long; a process that is killed loses it. Its default is 15."""


class WandbLog(Logger):
    """Write a W&B run into ``<save_dir>/wandb``, one run for a run folder, resumes included.

    Its axis is the number of the batch, as in ``metrics.csv``, however many optimisers a batch steps. A run
    that is continued has neither a gap nor an overlap: batches that W&B has from before are not sent again
    (an exact resume would repeat them), and those that a killed process took with it are sent from
    ``metrics.csv`` and the pictures of the run folder.

    A server that cannot be reached costs one warning and ``INIT_TIMEOUT_S``; the run goes on offline. What
    is offline is sent by ``wandb sync``; until that is done, a continued run stays offline too, so that its
    parts arrive in order.

    Args:
        save_dir: The run folder.
        project: W&B project.
        name: Shown name of the run; None takes the last two folders of ``save_dir``: experiment and time.
        mode: online, offline or disabled; None takes ``WANDB_MODE`` from the environment or, without one,
            online if a key is configured and offline otherwise.
        group: Group that the run belongs to, a sweep for instance.
        tags: Tags of the run; longer ones than W&B takes are cut.
        notes: A longer description.
        entity: User or team; None for the key's own.
        run_id: Identity of the run; None takes that of the run folder, else that of W&B's sweep agent, else a
            new one.
        save_code: Whether W&B may keep the code: the started file and the difference to the commit.

    Raises:
        UserError: If wandb is not installed, the mode is unknown, or online is asked for without a key.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        project: str = "i2i_lightning",
        name: str | None = None,
        mode: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        entity: str | None = None,
        run_id: str | None = None,
        save_code: bool = False,
    ) -> None:
        super().__init__()
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(
                "logger=wandb needs the package wandb, not installed here: "
                "pip install 'i2i_lightning[wandb]'\n"
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
        self.folder = Path(save_dir)
        self.mode = mode
        self.project = project
        self.title = name or "/".join(self.folder.resolve().parts[-2:])
        self.group = group
        self.tags = [tag[:MAX_TAG_LENGTH] for tag in tags if tag]
        self.notes = notes
        self.entity = entity
        self.run_id = run_id
        self.save_code = save_code
        self._run: Any = None
        self._data_dir: str | None = None
        self._config: dict[str, Any] = {}
        self._row: dict[str, Any] = {}
        self._late: dict[str, Any] = {}
        self._step: int | None = None
        self._known = -1
        self._written = -1
        self._filled = False
        self._offline = mode == "offline"

    # ------------------------------------------------------------------------------------------------ the run

    @property
    def name(self) -> str:
        """The W&B project."""
        return self.project

    @property
    def version(self) -> str | None:
        """The identity of the run, once there is one."""
        return self.run_id

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @property
    def wandb_dir(self) -> Path:
        """Where W&B's own files lie, and those this logger keeps beside them."""
        return self.folder / "wandb"

    @property
    def experiment(self) -> Any:
        """The W&B run, begun or continued at the first call.

        None on all processes but the first, and where the mode is ``disabled``.
        """
        if getattr(rank_zero_only, "rank", 0) != 0 or self.mode == "disabled":
            return None
        if self._run is None:
            self._begin()
        return self._run

    def _begin(self) -> None:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        if "WANDB_DATA_DIR" not in os.environ:
            # W&B keeps the pictures of tables there until they are sent: with the run, not in the home.
            os.environ["WANDB_DATA_DIR"] = self._data_dir = str(self.wandb_dir.resolve())
        kept = self.wandb_dir / "id"
        if self.run_id is None and kept.is_file():
            self.run_id = kept.read_text(encoding="utf-8").strip() or None
        if self.run_id is None:
            agent = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
            letters = string.ascii_lowercase + string.digits
            self.run_id = agent or "".join(secrets.choice(letters) for _ in range(ID_LENGTH))
        parts = sorted(self.wandb_dir.glob(f"offline-run-*-{self.run_id}/run-{self.run_id}.wandb"))
        unsent = [part for part in parts if not part.with_name(f"{part.name}.synced").exists()]
        mode = self.mode
        if mode == "online" and unsent:
            mode = "offline"
            log.warning(
                "W&B: an earlier part of this run has not been sent, so this one is kept offline too; "
                "send both with: wandb sync %s",
                self.wandb_dir / "offline-run-*",
            )
        try:
            self._run = self._init(wandb, mode)
        except Exception as error:  # whatever is wrong with a service is no reason not to train
            if mode != "online":
                raise
            wandb.teardown()  # its service would hold on to the identity
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning(
                "W&B cannot be reached (%s): this run is kept offline; send it with: wandb sync %s",
                reason,
                self.wandb_dir / "offline-run-*",
            )
            mode = "offline"
            self._run = self._init(wandb, mode)
        self.wandb_dir.mkdir(exist_ok=True)
        if not kept.is_file() or kept.read_text(encoding="utf-8").strip() != self.run_id:
            beside = kept.with_name(f"{kept.name}.tmp")
            beside.write_text(f"{self.run_id}\n", encoding="utf-8")
            os.replace(beside, kept)
        self._offline = mode != "online"
        # Online the server knows how far the run has come; offline the files of its earlier parts do.
        server = -1
        if getattr(self._run, "resumed", False):
            # ``step`` of a run that goes on is 0 until its first row, in 0.31 at least.
            server = max(int(self._run.step), int(getattr(self._run, "starting_step", 0))) - 1
        self._known = max([server, self._written, *map(last_step, parts)])
        self._written = max(self._written, self._known)
        self._run.define_metric(AXIS)
        self._run.define_metric("*", step_metric=AXIS)

    def _init(self, wandb: Any, mode: str) -> Any:
        wanted = {
            "silent": True,
            "console": "off",
            "init_timeout": INIT_TIMEOUT_S,
            "finish_timeout": FINISH_TIMEOUT_S,
            "save_code": self.save_code,
            "disable_code": not self.save_code,
            "x_transaction_log_flush_interval": FLUSH_INTERVAL_S,
        }
        # Releases differ in their settings; none of these is worth failing for.
        known = getattr(wandb.Settings, "model_fields", wanted)
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=self.run_id,
            name=self.title,
            group=self.group,
            tags=self.tags,
            notes=self.notes,
            config=self._config,
            allow_val_change=True,
            dir=str(self.folder),
            mode=mode,
            resume="allow",
            reinit="create_new",  # a sweep's next job must not go on writing into this run
            settings=wandb.Settings(**{key: value for key, value in wanted.items() if key in known}),
        )

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add plain containers to the run's config; before the run begins they wait for it."""
        values = vars(params) if isinstance(params, Namespace) else dict(params)
        self._config |= values
        if self._run is not None:
            self._run.config.update(values, allow_val_change=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending and finish the run, as failed unless ``status`` is ``success``.

        A later stage of the same trainer continues it under the same identity.
        """
        if self._run is None:
            return
        self._write_row()
        if self._late:
            self._run.summary.update(self._late)
        self._run.finish(exit_code=0 if status == "success" else 1)
        self._run, self._late = None, {}
        if self._data_dir is not None:
            os.environ.pop("WANDB_DATA_DIR", None)
            self._data_dir = None

    @rank_zero_only
    def mark_preempting(self) -> None:
        """Tell W&B that the machine is needed by others and the run will come back."""
        if self._run is not None:
            self._run.mark_preempting()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the run behind when a process is spawned; the first of them begins it."""
        return {**self.__dict__, "_run": None}

    # ------------------------------------------------------------------------------------------------ rows

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Add numbers to the row of ``step``; a new step writes the row before it."""
        self._add({name: float(value) for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_image(
        self, key: str, images: Sequence[Any], step: int | None = None, caption: Sequence[str] | None = None
    ) -> None:
        """Add pictures to the row of ``step``.

        Args:
            key: Name of the panel.
            images: Pictures, each uint8 (H, W, 3).
            step: Number of the batch; None takes that of the last row.
            caption: Words under each.
        """
        captions = caption if caption is not None else [None] * len(images)
        shown = [self._image(key, pixels, text) for pixels, text in zip(images, captions, strict=True)]
        self._add({key: shown}, step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int | None = None
    ) -> None:
        """Add a table to the row of ``step``; cells that are uint8 (H, W, 3) arrays become pictures."""
        import wandb

        rows = [
            [self._image(key, cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in data
        ]
        self._add({key: wandb.Table(columns=list(columns), data=rows)}, step)

    @staticmethod
    def _image(key: str, pixels: Any, caption: str | None = None) -> Any:
        import wandb

        return wandb.Image(checked(pixels, key), caption=caption)

    def _add(self, values: Mapping[str, Any], step: int | None) -> None:
        if self.experiment is None:
            return
        if step is None:
            step = max(0, self._written if self._step is None else self._step)
        if not self._filled:
            self._filled = True
            self._fill_up(step)
        if step <= self._known:
            return  # W&B has this batch from an earlier part of the run
        if step <= self._written:
            self._late |= values  # its row went out with a checkpoint: these go with the next
            return
        if step != self._step:
            self._write_row()
        self._step = step
        self._row |= values

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Write what is pending: a resume goes on after it.

        ``save`` cannot do this: Lightning calls it after every number, in the middle of a step.
        """
        self._write_row()

    def _write_row(self) -> None:
        if self._row and self._step is not None:
            self._send(self._step, {**self._late, **self._row})
            self._row, self._late = {}, {}

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        # W&B's own step is the batch too: it places pictures and tables, and never goes back.
        self._run.log({**values, AXIS: step}, step=step, commit=True)
        self._written = step

    def _fill_up(self, step: int) -> None:
        """Send what W&B lacks of the batches before ``step`` from the files of the run folder."""
        metrics = self.folder / "metrics.csv"
        if not metrics.is_file():
            return
        rows = [row for row in read_rows(metrics)[1] if row.get("step", "").isdecimal()]
        last_of = {row.get("epoch"): row for row in rows}  # whose preview is made at its end
        for row in rows:
            if not self._known < int(row["step"]) < step:
                continue
            values: dict[str, Any] = {
                name: float(cell) for name, cell in row.items() if cell and name not in FIRST_COLUMNS
            }
            if row.get("epoch"):
                values["epoch"] = float(row["epoch"])
                epoch = int(float(row["epoch"])) + 1
                ends = row is last_of[row["epoch"]]
                if ends and (picture := preview_file(self.folder, epoch)).is_file():
                    with Image.open(picture) as grid:
                        pixels = np.asarray(grid.convert("RGB"))
                    values[PREVIEW] = [self._image(PREVIEW, pixels, preview_caption(epoch))]
            self._send(int(row["step"]), values)

    # ------------------------------------------------------------------------------------------------ files

    @rank_zero_only
    def log_files(
        self,
        kind: str,
        files: Mapping[str, Path],
        aliases: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Hand files to W&B as a version of the artifact ``<kind>-<run id>``; offline they wait for the sync.

        Args:
            kind: What they are: ``checkpoint`` or ``gallery``.
            files: Where each lies, by its name in the artifact. Hard links are kept in the run folder's
                ``wandb/artifacts``, so that a later replacement by a rename does not change what is sent.
            aliases: Names of this version.
            metadata: Facts about it.
        """
        run = self.experiment
        if run is None:
            return
        artifact = self._artifact(TYPES.get(kind, kind), f"{kind}-{self.run_id}", metadata)
        for name, path in files.items():
            artifact.add_file(str(self._keep(path)), name=name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=list(aliases))
        with (self.wandb_dir / "artifacts.jsonl").open("a", encoding="utf-8") as file:
            line = {
                "name": artifact.name.partition(":")[0],
                "digest": artifact.digest,
                "aliases": list(aliases),
            }
            file.write(json.dumps(line) + "\n")

    @rank_zero_only
    def use_checkpoint(self, path: Path, role: str) -> None:
        """Record that the run goes on from a checkpoint: an edge in W&B's graph, and an entry in the config.

        The file itself is not sent. It carries the name that the run which wrote it gave it, so that W&B
        recognises the version where it has been uploaded.

        Args:
            path: The file. One of this very run counts only if it was handed to W&B.
            role: What for: ``warm_start`` or ``resume``.
        """
        run = self.experiment
        if run is None:
            return
        source = _run_of(path)
        name = f"checkpoint-{source}" if source else f"weights-{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)}"
        artifact = self._artifact(TYPES["checkpoint"], name, {"file": str(path), "role": role})
        artifact.add_reference(path.resolve().as_uri(), name="checkpoint.ckpt")
        if source == self.run_id and artifact.digest not in self._handed_over():
            return
        run.config.update({"inputs": {role: f"{name} {artifact.digest}"}}, allow_val_change=True)
        if not self._offline:
            run.use_artifact(artifact)
        elif hasattr(run, "_log_artifact"):
            # Offline the public method refuses; this is the record that it would write.
            run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _handed_over(self) -> set[str]:
        log_file = self.wandb_dir / "artifacts.jsonl"
        lines = log_file.read_text(encoding="utf-8").splitlines() if log_file.is_file() else []
        digests = set()
        for line in lines:
            with suppress(ValueError):  # half a line, of a process that was killed
                digests.add(json.loads(line)["digest"])
        return digests

    @staticmethod
    def _artifact(kind: str, name: str, metadata: Mapping[str, Any] | None) -> Any:
        import wandb

        return wandb.Artifact(name, type=kind, metadata=dict(metadata or {}))

    def _keep(self, path: Path) -> Path:
        """Return a second name of ``path`` that stays what it is, without a copy where the disk allows."""
        state = path.stat()
        kept = self.wandb_dir / "artifacts" / f"{state.st_mtime_ns}-{state.st_ino}-{path.name}"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, kept)
            except OSError:  # a file system without links
                shutil.copyfile(path, kept)
        return kept

    @rank_zero_only
    def note(self, values: Mapping[str, Any]) -> None:
        """Put single values, which have no step, into the run's summary."""
        if (run := self.experiment) is not None:
            run.summary.update(dict(values))

    @rank_zero_only
    def warn(self, title: str, text: str) -> None:
        """Raise one of W&B's alerts."""
        if (run := self.experiment) is not None:
            run.alert(title=title, text=text, level="WARN")


def _run_of(path: Path) -> str | None:
    """Return the W&B identity of the run in whose folder ``path`` lies; None if it has none."""
    for folder in path.resolve().parents:
        kept = folder / "wandb" / "id"
        if kept.is_file():
            return kept.read_text(encoding="utf-8").strip()
        if (folder / "config.yaml").is_file():
            return None
    return None


def server_address() -> str:
    """Return the server's address, as the environment or ``wandb login --host`` left it."""
    address = os.environ.get("WANDB_BASE_URL")
    if not address:
        import wandb

        address = str(wandb.Settings().base_url)
    return address.rstrip("/")


def has_key() -> bool:
    """Say whether W&B would find a key without asking: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(server_address()).netloc
    path = os.environ.get("NETRC")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
