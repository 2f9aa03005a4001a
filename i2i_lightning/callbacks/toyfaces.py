"""Scores of a run on ToyFaces: the judge during validation, and a report on held-out faces at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from i2i_lightning.callbacks.places import Places
from i2i_lightning.callbacks.writing import write_if_possible
from i2i_lightning.data.module import collate
from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, CLASS_PALETTE
from i2i_lightning.data.toyfaces.module import ToyFacesDataModule, ToyFacesPairs
from i2i_lightning.metrics.image import sharpness
from i2i_lightning.metrics.judge import Judge, Scores, load_judge
from i2i_lightning.metrics.segmentation import confusion, iou, mean_iou, nearest_colour, pixel_accuracy
from i2i_lightning.metrics.table import without_nan
from i2i_lightning.types import UserError

REPORT_NAME = "report.json"
_SHOWN = ("iou", "pixel_accuracy", "landmark_error", "parameter_error", "attribute_error")
_CHUNK = 25


class ToyFacesReport(Callback):
    """Log ``val/judge_iou`` and write ``report.json`` when a fit on ToyFaces ends; ignore other data.

    During validation the judge parses the outputs as they would be saved (``display_output``), and its mean
    IoU with the true parsing is logged; where the output is itself a parsing (``photo_to_parsing``), its
    nearest palette colours are compared instead, as ``val/parsing_iou``.

    At the end the faces of the test split, which no training has seen, are translated as ``preview`` does it,
    and three things are set beside each other, all computed in that run: the outputs, the real pictures, and
    what costs nothing (the input copied; every class painted in its mean colour over the training split, by
    the true parsing). Beside the judge's scores stand the pixel error and the sharpness, which the judge does
    not see. The fit's random state, networks and data position are left as they were.

    Args:
        num_val_faces: Validation faces that the judge reads each time, from the first; 0 for none.
        report: Whether to write the report at the end.

    Raises:
        UserError: If ``num_val_faces`` is negative.
    """

    def __init__(self, num_val_faces: int = 64, report: bool = True) -> None:
        if num_val_faces < 0:
            raise UserError(f"callbacks.toyfaces.num_val_faces={num_val_faces}: give 0 (none) or more")
        self.num_val_faces = num_val_faces
        self.report = report
        self._judge: Judge | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._places = Places()

    # ------------------------------------------------------------------------------------------------
    # validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the outputs of the last validation."""
        self._pending = []
        self._places.begin(trainer, "val")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the outputs of the first faces; the judge reads them together."""
        data = _toyfaces(trainer)
        if data is None or not isinstance(outputs, Mapping):
            return
        places = self._places.advance(batch)
        read = ((places >= 0) & (places < self.num_val_faces)).to(pl_module.device)
        if read.any():
            fake_b, real_a = outputs["fake_b"][read], outputs["real_a"][read]
            self._pending.append((data.display_output(fake_b, real_a), batch["parsing"][read]))

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean IoU over all processes' faces."""
        data = _toyfaces(trainer)
        if data is None or self.num_val_faces == 0:
            return
        counts = torch.zeros(len(CLASS_NAMES), len(CLASS_NAMES), dtype=torch.long, device=pl_module.device)
        images = [image for batch, _ in self._pending for image in batch]
        truths = [truth for _, batch in self._pending for truth in batch]
        for start in range(0, len(images), _CHUNK):
            parsing = torch.stack(truths[start : start + _CHUNK])
            classes = self._classes(torch.stack(images[start : start + _CHUNK]), data, parsing.shape[-1])
            counts += confusion(classes, parsing.to(classes.device), len(CLASS_NAMES)).to(counts.device)
        self._pending = []
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts, reduce_op="sum")
        if counts.sum() > 0:
            name = "val/parsing_iou" if data.table.b == "palette" else "val/judge_iou"
            pl_module.log(name, mean_iou(counts).float(), batch_size=1, rank_zero_only=False)

    def _classes(self, images: Tensor, data: ToyFacesDataModule, size_px: int) -> Tensor:
        if data.table.b == "palette":
            return nearest_colour(images, CLASS_PALETTE)
        judge = self._get_judge(images.device)
        return judge.parse(judge.read(images), size_px, size_px)

    def _get_judge(self, device: torch.device) -> Judge:
        if self._judge is None:
            self._judge = load_judge(device)
        return self._judge.to(device)

    # ------------------------------------------------------------------------------------------------ report

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Translate the test split, score it, write ``report.json`` and print a small table."""
        data = _toyfaces(trainer)
        if data is None or not self.report or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        report = self.make_report(trainer, pl_module, data)
        if trainer.is_global_zero:
            text = json.dumps(report, indent=1) + "\n"
            path = Path(trainer.default_root_dir) / REPORT_NAME
            write_if_possible(path, text)
            print(table(report), flush=True)

    @torch.no_grad()
    def make_report(
        self, trainer: Trainer, pl_module: LightningModule, data: ToyFacesDataModule
    ) -> dict[str, Any]:
        """Return the report as plain containers; every process computes the whole of it."""
        data.setup("test")
        to_parsing = data.table.b == "palette"
        judge = self._get_judge(pl_module.device)
        rows = ("outputs",) if to_parsing else ("outputs", "real", "copied_input")
        scores = {row: Scores(judge) for row in rows}
        counts = torch.zeros(len(CLASS_NAMES), len(CLASS_NAMES), dtype=torch.long)
        colours = self._class_colours(data)
        errors: dict[str, float] = {"outputs": 0.0, "copied_input": 0.0, "class_means": 0.0}
        sharp = dict(errors)
        faces = 0
        for batch, shown in self._translate(trainer, pl_module, data):
            target = shown["target"].float()
            painted = colours[batch["parsing"].cpu()].permute(0, 3, 1, 2).to(target.device)
            pictures = {
                "outputs": shown["output"].float(),
                "copied_input": shown["input"].float(),
                "class_means": painted,
            }
            for name, picture in pictures.items():
                errors[name] += float((picture - target).abs().flatten(1).mean(1).sum())
                sharp[name] += float(sharpness(picture / 127.5 - 1, target / 127.5 - 1).sum())
            if to_parsing:
                classes = nearest_colour(shown["output"], CLASS_PALETTE).cpu()
                counts += confusion(classes, batch["parsing"].cpu(), len(CLASS_NAMES))
            else:
                for row, column in (("outputs", "output"), ("real", "target"), ("copied_input", "input")):
                    scores[row].update(
                        shown[column], batch["parsing"], batch["landmarks"], batch["parameters"]
                    )
            faces += len(target)
        levels = {name: total / faces for name, total in errors.items()}
        report: dict[str, Any] = {
            "task": data.task,
            "faces": f"{faces} of the test split, {data.size_px[0]} px" if data.size_px else str(faces),
        }
        if to_parsing:
            by_class = dict(zip(CLASS_NAMES, iou(counts).tolist(), strict=True))
            report["parsing"] = {
                "iou": float(mean_iou(counts)),
                "pixel_accuracy": float(pixel_accuracy(counts)),
            }
            report["iou_by_class"] = {"outputs": by_class}
        else:
            computed = {row: score.compute() for row, score in scores.items()}
            style = "cartoon" if data.table.b == "cartoon" else "photo"
            report["iou_ratio"] = computed["outputs"]["iou"] / computed["real"]["iou"]
            report["judge"] = {
                row: {
                    **{name: values[name] for name in _SHOWN},
                    f"{style}_probability": values["style"][style],
                }
                for row, values in computed.items()
            }
            report["iou_by_class"] = {row: computed[row]["iou_by_class"] for row in ("outputs", "real")}
            report["error_by_parameter"] = {
                name: {row: computed[row]["error_by_parameter"][name] for row in ("outputs", "real")}
                for name in computed["outputs"]["error_by_parameter"]
            }
        report["pixel_error"] = {
            name: {"of_255": value, "of_minus_1_to_1": value / 127.5} for name, value in levels.items()
        }
        report["sharpness"] = {name: total / faces for name, total in sharp.items()}
        cleaned: dict[str, Any] = without_nan(report)
        return cleaned

    @staticmethod
    def _class_colours(data: ToyFacesDataModule) -> Tensor:
        train_set = data.train_set
        if not isinstance(train_set, ToyFacesPairs):
            raise UserError(
                "the ToyFaces report needs the training split for its mean colours: call setup('fit') first"
            )
        return torch.from_numpy(train_set.class_colours).float().round()

    @staticmethod
    def _translate(
        trainer: Trainer, pl_module: LightningModule, data: ToyFacesDataModule
    ) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield test batches on the device with their input, output and target as uint8 RGB."""
        module: Any = pl_module
        test_set, plugin = data.test_set, trainer.precision_plugin
        assert test_set is not None  # setup("test") made it.
        for start in range(0, len(test_set), _CHUNK):
            items = collate(
                [test_set[0, index] for index in range(start, min(start + _CHUNK, len(test_set)))]
            )
            batch = data.to_network(items)
            on_device = {k: v.to(module.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            with plugin.forward_context():
                columns: dict[str, Tensor] = module.preview(plugin.convert_input(on_device))
            real_a = columns["input"]
            yield (
                on_device,
                {
                    "input": data.display_input(real_a),
                    "output": data.display_output(columns["output"], real_a),
                    "target": data.display_output(columns["target"], real_a),
                },
            )


def table(report: Mapping[str, Any]) -> str:
    """Return a report as a few lines for the terminal."""
    lines = [f"ToyFaces {report['task']}, {report['faces']}"]
    if "judge" in report:
        style = next(name for name in report["judge"]["outputs"] if name.endswith("_probability"))
        columns = {
            "iou": "IoU",
            "pixel_accuracy": "pixels",
            "landmark_error": "landmarks",
            style: style.split("_")[0],
        }
        lines.append(f"  {'judge':<14}" + "".join(f"{head:>11}" for head in columns.values()))
        for row, values in report["judge"].items():
            lines.append(
                f"  {row.replace('_', ' '):<14}" + "".join(f"{values[name]:>11.3f}" for name in columns)
            )
        lines.append(f"  IoU of the outputs over IoU of real pictures: {report['iou_ratio']:.3f}")
    else:
        lines.append(
            f"  parsing IoU {report['parsing']['iou']:.3f}, pixels {report['parsing']['pixel_accuracy']:.3f}"
        )
    errors = ", ".join(
        f"{name.replace('_', ' ')} {value['of_255']:.1f}" for name, value in report["pixel_error"].items()
    )
    lines.append(f"  mean pixel error of 255: {errors}")
    sharp = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in report["sharpness"].items())
    lines.append(f"  sharpness, 1 as the targets: {sharp}")
    return "\n".join(lines)


def _toyfaces(trainer: Trainer) -> ToyFacesDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ToyFacesDataModule) else None
