"""What an inversion leaves: for each image a latent and pictures, and of all images a table and a page."""

from __future__ import annotations

import csv
import html
import io
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from i2i_lightning.callbacks.drawing import data_uri, html_page
from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.checkpoints.latents import Latent, load_metrics, save_latent
from i2i_lightning.data.checks import first_names
from i2i_lightning.losses.perceptual import LPIPS
from i2i_lightning.methods.inversion import Embedding
from i2i_lightning.methods.ranks import gather
from i2i_lightning.metrics.image import psnr, ssim
from i2i_lightning.sampling.pictures import to_picture, write_png
from i2i_lightning.sampling.sheets import Layout, Sheet, tile, tile_side
from i2i_lightning.types import UserError

resource: Any
try:
    import resource
except ImportError:  # Windows has none
    resource = None

log = logging.getLogger(__name__)

COLUMNS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "mse": "MSE",
    "distance": "distance",
    "steps": "steps",
    "seconds": "seconds",
    "memory_mb": "memory, MB",
}
"""Key of each figure in latent files, and its heading. ``distance`` is that from the mean latent in units of
the deviation of w; ``seconds`` are those of the chunk over its images; ``memory`` is a peak, that of
:data:`MEMORY`. Of a chunk that was stopped and resumed both are of all its parts."""

MEMORY = {
    "cuda": "Memory: the most that was allocated on the GPU during the image's chunk.",
    "process": "Memory: the process's peak resident size, from its start to the end of the image's chunk.",
}
"""What the figure of memory is, on a GPU by CUDA and elsewhere."""

SHOWN = 16
"""Images that the picture and the page show; the page links to the others."""

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fafaf8}table{border-collapse:collapse;display:block;overflow-x:auto}"
    "th,td{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}img{max-width:100%}figure{margin:1.5rem 0}"
    "figcaption{color:#555}"
)
"""CSS of the page."""


class InversionResults(Callback):
    """Write what was found for every image as soon as its chunk is through.

    Under the run folder: ``latents/<name>.safetensors``, from which the picture re-renders exactly;
    ``pictures/<name>.png``; ``strips/<name>.png``, target, stages of the search, result; and at the end
    ``results.csv``, ``results.md``, ``results.png`` and ``index.html``, made from the files of all processes,
    those of an interrupted run included. PSNR is over uint8 pictures, with the peak 255.
    An image whose search ended in NaN has no files: the run goes on with the others, names it on the page and
    fails at its end. A run that is continued fails for those alone that were lost since, and names all.

    Args:
        generator: What the generator was loaded by, for the latent files.
        snapshots: Pictures of a strip between target and result; 0 writes no strips.
        video: Whether to write the search of each image as an animation, ``videos/<name>.webp``.
        frames: Frames of an animation.
    """

    def __init__(
        self, generator: str = "", snapshots: int = 6, video: bool = False, frames: int = 48
    ) -> None:
        if snapshots < 0 or frames < 2:
            raise UserError(
                f"callbacks.results: snapshots={snapshots}, frames={frames}: give 0, and 2, or more"
            )
        self.generator = generator
        self.snapshots = snapshots
        self.video = video
        self.frames = frames
        self._started = False
        self._chunk = -1
        self._began = 0.0
        self._before = (0.0, 0.0)  # seconds and MB of the chunk before this process took it up
        self._seen: list[Tensor] = []
        self._marks: set[int] = set()
        self._lpips: LPIPS | None = None
        self._notes: list[str] = []
        self._lost: list[str] = []  # images whose search ended in NaN, here and in this process
        self._lost_before: list[str] = []  # those of before the run was continued, in the first process

    # -------------------- while a chunk is searched for

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out what can be measured, and go on with the clock of a chunk that is resumed."""
        self._started = True
        try:
            self._lpips = LPIPS("vgg").to(pl_module.device)
        except UserError:
            self._notes.append("LPIPS was not measured: i2i-weights get lpips_vgg16")
        if peak_memory_mb(pl_module.device):
            self._notes.append(MEMORY["cuda" if pl_module.device.type == "cuda" else "process"])
        if getattr(getattr(trainer, "datamodule", None), "masks", None) is not None:
            self._notes.append("Figures are of whole pictures, with what the masks leave out.")
        search: Any = pl_module.search
        self._notes += [*search.notes, *search.loss.notes()]
        steps = int(trainer.num_training_batches)
        wanted = self.frames if self.video else self.snapshots
        # Most happens in the beginning: marks lie closer there.
        self._marks = {round(steps * (index / max(wanted, 1)) ** 2) for index in range(wanted)}
        self._start_clock(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the clock and the pictures of a chunk, unless it goes on."""
        if self._chunk == trainer.current_epoch:
            return
        self._chunk, self._before, self._seen = trainer.current_epoch, (0.0, 0.0), []
        self._start_clock(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a picture of how far the images are, at a few steps."""
        if batch_idx in self._marks and len(batch["real"]) and not pl_module.search.done:  # type: ignore[union-attr]
            self._seen.append(_as_shown(pl_module.preview(batch)["output"].float().cpu()))  # type: ignore[operator]

    def _start_clock(self, device: torch.device) -> None:
        self._began = time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def _spent(self, device: torch.device) -> tuple[float, float]:
        """Return the chunk's seconds and peak of memory, in MB, so far."""
        seconds, memory = self._before
        return seconds + time.monotonic() - self._began, max(memory, peak_memory_mb(device))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put in what is known of the chunks that every process is at."""
        mine = {"chunk": self._chunk, "spent": self._spent(pl_module.device), "seen": self._seen}
        checkpoint["inversion_results"] = gather(trainer, mine | {"lost": [*self._lost_before, *self._lost]})

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take out what was known of the chunk that this process was at, unless it begins anew."""
        ranks = checkpoint.get("inversion_results", [])
        if trainer.is_global_zero:  # there may be fewer processes than before
            self._lost_before = [name for rank in ranks for name in rank.get("lost", ())]
        goes_on = getattr(getattr(trainer, "datamodule", None), "goes_on", True)
        if goes_on and trainer.global_rank < len(ranks):
            mine = ranks[trainer.global_rank]
            self._chunk, self._before, self._seen = mine["chunk"], tuple(mine["spent"]), list(mine["seen"])

    # -------------------- when it is through

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results of the chunk."""
        search: Any = pl_module.search
        if search.targets is None or len(search.targets) == 0 or not search.done:
            return  # no image is left for this process, or a signal has stopped it on the way
        found = pl_module.embedding()  # type: ignore[operator]
        targets = search.targets.real.float()
        image = found.image.float().clamp(-1, 1)
        figures = self._measure(image, targets)
        seconds, memory = self._spent(pl_module.device)
        folder = Path(trainer.default_root_dir)
        for index, name in enumerate(found.names):
            if not _is_finite(found, index):  # nothing of it is written, and the others go on
                self._lost.append(name)
                continue
            metrics = {key: float(values[index]) for key, values in figures.items()}
            metrics |= {"distance": float(found.distance[index]), "steps": int(found.steps[index])}
            metrics |= {"seconds": seconds / len(found)} | ({"memory_mb": memory} if memory else {})
            metrics |= {f"loss_{key}": float(values[index]) for key, values in found.terms.items()}
            latent = Latent(
                w_plus=found.w_plus[index].float(),
                fingerprint=pl_module.fingerprint,  # type: ignore[arg-type]
                name=name,
                noise=None if found.noise is None else [map_[index : index + 1] for map_ in found.noise],
                label=None if found.label is None else found.label[index],
                tuned=None if found.tuned is None else found.tuned[index],
                generator=self.generator,
                settings={**found.settings, "notes": found.notes},
                metrics=metrics,
            )
            notes = {"latent": f"latents/{name}.safetensors"}
            write_png(folder / "pictures" / f"{name}.png", to_picture(found.image[index].cpu()), notes)
            write_png(folder / "targets" / f"{name}.png", to_picture(targets[index].cpu()), {})
            if self.snapshots:
                strip = self._strip(targets[index], index, found.image[index])
                write_png(folder / "strips" / f"{name}.png", strip, notes)
            if self.video:
                self._animate(folder / "videos" / f"{name}.webp", index, found.image[index])
            # Last: an image that has a latent has all the rest.
            save_latent(folder / "latents" / f"{name}.safetensors", latent)
        self._seen = []  # the checkpoint that comes now need not hold them

    def _measure(self, image: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the figures of pictures as they are saved, 8 bits deep, (N,) each."""
        levels, wanted = (_levels(each) for each in (image, targets))
        figures = {"psnr": psnr(levels, wanted), "mse": (image - targets).square().flatten(1).mean(1)}
        if min(image.shape[-2:]) >= 11:
            figures["ssim"] = ssim(levels, wanted)
        if self._lpips is not None and image.shape[1] == 3 and min(image.shape[-2:]) >= 16:
            with torch.no_grad():
                figures["lpips"] = self._lpips(levels, wanted)
        return figures

    def _strip(self, target: Tensor, index: int, result: Tensor) -> Image.Image:
        """Return target, pictures of the search and result side by side."""
        every = max(1, len(self._seen) // max(self.snapshots, 1))
        ends = [to_picture(image.float().cpu()) for image in (target, result)]
        shown = [ends[0], *self._pictures(index)[::every][: self.snapshots], ends[1]]
        sheet = Sheet(Layout(len(shown), 1, tile_side(target.shape[-1], None)))
        words = ["target", *[""] * (len(shown) - 2), "found"]
        for column, (picture, word) in enumerate(zip(shown, words, strict=True)):
            sheet.put(column, 0, picture, word)
        return sheet.image

    def _pictures(self, index: int) -> list[Image.Image]:
        """Return the search of an image."""
        return [Image.fromarray(batch[index].numpy()) for batch in self._seen]

    def _animate(self, path: Path, index: int, result: Tensor) -> None:
        frames = [*self._pictures(index), to_picture(result.float().cpu())]
        side = tile_side(frames[-1].width, None)
        frames = [frame.resize((side, side), Image.Resampling.LANCZOS) for frame in frames]
        write_beside(
            path,
            lambda beside: frames[0].save(
                beside,
                format="WEBP",
                save_all=True,
                append_images=frames[1:],
                duration=60,
                loop=0,
                quality=90,
            ),
        )

    # -------------------- when all are

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write table and page from the files of all processes.

        Only the first process raises, once the table is there: a status of another one would pass for its
        death.

        Raises:
            UserError: If an image has no latent, because the search for it ended in NaN.
        """
        lost = [name for names in gather(trainer, self._lost) for name in names]
        trainer.strategy.barrier("inversions")
        self._write_table(trainer, lost)
        if lost and trainer.is_global_zero:
            self._started = False  # the table is written
            raise UserError(_no_latent(lost))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name what was lost before where a run that is continued has nothing left to search for."""
        if stage == "fit" and not self._started and self._lost_before:
            print(_no_latent(self._lost_before))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write table and page of what there is: the run ends here, and may have taken days."""
        if not self._started:  # a resume that was refused, say: what there is stays as it is
            return
        with suppress(OSError, UserError):  # the disk may be full, and what ended the run is told anyway
            self._write_table(trainer, self._lost)

    def _write_table(self, trainer: Trainer, lost: Sequence[str]) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            # A run that was resumed with other images has found those of earlier chunks too.
            names = list(dict.fromkeys([*data.names, *(name for chunk in data.plan for name in chunk)]))
            lost = [*self._lost_before, *lost]
            notes = [*self._notes, _no_latent(lost)] if lost else self._notes
            write_table(folder, read_rows(folder, names), notes)


def peak_memory_mb(device: torch.device) -> float:
    """Return a peak of memory in MB, as :data:`MEMORY` words it; 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return 0.0
    # In kB, but on macOS in bytes (getrusage(2) of either system).
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _no_latent(names: Sequence[str]) -> str:
    """Word that images were lost, and what helps."""
    return (
        f"{first_names(names)}: no latent, because the search ended in numbers that are not finite; "
        "begin anew with a lower rate in method.stages (resume= searches for no image twice)"
    )


def _is_finite(found: Embedding, index: int) -> bool:
    """Return whether what was found for an image, and its picture, hold finite numbers alone."""
    tensors = [found.image[index], found.w_plus[index], *(map_[index] for map_ in found.noise or [])]
    tensors += [] if found.tuned is None else found.tuned[index].values()
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _levels(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _as_shown(images: Tensor) -> Tensor:
    """Return images as pictures no larger than strips show them, uint8 (N, H, W) or (N, H, W, C)."""
    side = min(images.shape[-1], tile_side(images.shape[-1], None))
    pictures = [tile(to_picture(image), side) for image in images]
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])


def read_rows(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the figures of each of ``names`` that has a latent file under ``folder``."""
    rows = []
    for name in names:
        path = folder / "latents" / f"{name}.safetensors"
        if path.is_file():
            rows.append({"image": name, **load_metrics(path)})
    return rows


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """Write ``results.csv``, ``results.md``, ``results.png`` and ``index.html`` into ``folder``."""
    if not rows:
        return
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    mean = {key: _mean([row[key] for row in rows if key in row]) for key in keys}
    text = io.StringIO()
    every = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, every)
    writer.writeheader()
    writer.writerows(rows)
    table = [["image", *(COLUMNS[key] for key in keys)]]
    table += [[str(row["image"]), *(_shown(row.get(key)) for key in keys)] for row in rows]
    table += [[f"mean of {len(rows)}", *(_shown(mean[key]) for key in keys)]]
    lines = [f"| {' | '.join(row)} |" for row in table]
    lines.insert(1, f"|{' --- |' * len(table[0])}")
    below = ["PSNR of 8-bit pictures, peak 255.", *dict.fromkeys(notes)]
    for name, content in (
        ("results.csv", text.getvalue()),
        ("results.md", "\n".join([*lines, "", *below]) + "\n"),
        ("index.html", _page(folder, rows, table, below)),
    ):
        write_beside(folder / name, lambda beside, content=content: _write(beside, content))  # type: ignore[misc]
    write_png(folder / "results.png", _sheet(folder, [str(row["image"]) for row in rows[:SHOWN]]), {})
    print("\n".join([_aligned(table if len(rows) <= 12 else [table[0], table[-1]]), "", *below]))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sheet(folder: Path, names: Sequence[str]) -> Image.Image:
    """Return targets above results."""
    pictures = [
        [Image.open(folder / kind / f"{name}.png") for name in names] for kind in ("targets", "pictures")
    ]
    sheet = Sheet(Layout(len(names), 2, tile_side(pictures[0][0].width, None)))
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            sheet.put(column, row, picture, names[column][:18] if row == 0 else "found")
    return sheet.image


def _page(
    folder: Path, rows: Sequence[Mapping[str, Any]], table: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """Return a page: the table, the first images with their searches inside of it, and links to the rest."""
    cells = "".join(
        f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
        for row, tag in zip(table, ["th", *["td"] * (len(table) - 1)], strict=True)
    )
    figures, links = [], []
    for number, row in enumerate(rows):
        name = str(row["image"])
        kind = "strips" if (folder / "strips" / f"{name}.png").is_file() else "pictures"
        words = html.escape(f"{name}: {_shown(row.get('psnr'))} dB")
        if number >= SHOWN:
            links.append(f'<li><a href="{quote(f"{kind}/{name}.png")}">{words}</a></li>')
            continue
        with Image.open(folder / kind / f"{name}.png") as picture:
            uri = data_uri(picture.convert("RGB"), 1400)
        image = f'<img src="{uri}" alt="{words}">'
        figures.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")
    others = f"<ul>{''.join(links)}</ul>" if links else ""
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    heading = f"<h1>Inversion of {len(rows)} images</h1>"
    return html_page("Inversion", STYLE, [heading, f"<table>{cells}</table>", said, *figures, others])


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
