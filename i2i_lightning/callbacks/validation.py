"""Validation metrics against the targets of the whole validation set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from i2i_lightning.callbacks.places import Places, first_places
from i2i_lightning.data.module import ImageDataModule
from i2i_lightning.metrics.segmentation import Colours
from i2i_lightning.metrics.suite import (
    SEGMENTATION_METRICS,
    SET_METRICS,
    MetricSuite,
    check_names,
    gather_rows,
)
from i2i_lightning.types import UserError

_PREFIX = "callbacks.validation."


class ValidationMetrics(Callback):
    """Log ``val/<metric>`` for any metrics of :class:`~i2i_lightning.metrics.suite.MetricSuite`.

    ``l1`` is measured on the network's own values, in units of the [-1, 1] range (one-hot maps: of {0, 1}),
    so that it compares with the training term. All others are measured on the images as they would be saved:
    uint8 RGB from the data module's ``display_output``. Paired metrics are means over images, not over
    batches; ``fid``, ``kid`` and ``judge_distance`` (the last two with their ``_std``) compare all outputs
    with all targets, and the three segmentation metrics share one confusion matrix. Over several processes
    the figures are those of one: all images come together in the order of the set, and those that the sampler
    gave out twice count once. When testing, the names begin with ``test/``. All can be monitored by
    checkpoints and schedules.

    A method that translates both ways (its ``validation_step`` returns ``fake_a`` as well) is measured both
    ways: ``val/<metric>_ab``, ``val/<metric>_ba``, and their mean under ``val/<metric>``. On data without
    pairs only the metrics of sets mean something, save where a batch brings hidden partners for scoring. A
    method without an input side returns ``fake_b`` and ``real_b`` alone, and has no other metrics at all.
    ``judge_distance`` needs no weights, and ToyFaces whose outputs are photos or cartoons.

    Networks that measure are built before training starts, so that missing weights are told then; nothing is
    downloaded. The features of the targets are computed once: the validation set does not change.

    Args:
        metrics: Any of l1, psnr, ssim, ms_ssim, lpips_alex, lpips_vgg, fid, kid, judge_distance,
            pixel_accuracy, class_accuracy, mean_iou.
        palette: By which the last three read label pictures: facades, cityscapes, toyfaces, or a list of
            colours. Not needed where the data has class maps.
        kid_subset_size: Images in each of the 100 subsets of ``kid`` and ``judge_distance``.

    Raises:
        UserError: If there is no such metric or palette.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("l1", "psnr", "ssim"),
        palette: str | Colours | None = None,
        kid_subset_size: int = 50,
    ) -> None:
        self.metrics = check_names(metrics, f"{_PREFIX}metrics")
        self.palette = palette
        self.kid_subset_size = kid_subset_size
        self._ways: dict[str, _Way] = {}
        self._reads_classes = False
        self._places = Places()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the networks that measure.

        Raises:
            UserError: If their weights are not at hand, the classes are not known, or a metric does not fit
                the data.
        """
        if self._ways:
            return
        data = getattr(trainer, "datamodule", None)
        self._check_fit(data, pl_module)
        num_classes = None
        if set(SEGMENTATION_METRICS) & set(self.metrics) and self.palette is None:
            output = data.formats()[1] if isinstance(data, ImageDataModule) else None
            if output is not None and output.kind == "labels":
                self._reads_classes, num_classes = True, output.channels
        suite = MetricSuite(
            [name for name in self.metrics if name != "l1"],
            trainer.strategy.root_device,
            palette=self.palette,
            num_classes=num_classes,
            kid_subset_size=self.kid_subset_size,
            prefix=_PREFIX,
        )
        self._ways = {"ab": _Way(suite)}

    def _check_fit(self, data: Any, pl_module: LightningModule) -> None:
        """Raise a ``UserError`` if a metric means nothing on this data."""
        judged: Callable[[str], str | None] = getattr(data, "judged_style", lambda direction: None)
        directions: Mapping[str, str] = getattr(pl_module, "directions", {})
        judges = all(judged(direction) for direction in directions or ("ab",))
        if "judge_distance" in self.metrics and not judges:
            raise UserError(
                f"{_PREFIX}metrics: judge_distance knows toy faces alone, photos and cartoons, and this data "
                "is something else; leave it out, or take kid"
            )
        paired = [name for name in self.metrics if name not in SET_METRICS]
        if paired and getattr(data, "one_sided", False):
            fit = [name for name in reversed(SET_METRICS) if judges or name != "judge_distance"]
            raise UserError(
                f"{_PREFIX}metrics: {', '.join(paired)} compare an output with its target, and "
                f"{type(pl_module).__name__} has no inputs; give any of {', '.join(fit)}, or []"
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the outputs of the last validation."""
        self._begin(trainer, "val")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch's images; the figures stay on the device."""
        self._measure(trainer, pl_module, outputs, batch, ("val", batch_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures under ``val/``."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the outputs of the last test."""
        self._begin(trainer, "test")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch's images; the figures stay on the device."""
        self._measure(trainer, pl_module, outputs, batch, ("test", batch_idx))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures under ``test/``."""
        self._log(trainer, pl_module, "test")

    def _begin(self, trainer: Trainer, stage: str) -> None:
        for way in self._ways.values():
            way.reset()
        self._places.begin(trainer, stage)

    @torch.no_grad()
    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        place: tuple[str, int],
    ) -> None:
        needed = {"fake_b", "real_b"} | (set() if _one_sided(batch) else {"real_a"})
        if not isinstance(outputs, Mapping) or not needed <= set(outputs):
            raise TypeError(
                f"ValidationMetrics needs {' and '.join(sorted(needed))} from "
                f"{type(pl_module).__name__}.validation_step"
            )
        if "fake_a" in outputs and "ba" not in self._ways:
            self._ways["ba"] = self._ways["ab"].back()
        places = self._places.advance(batch)
        for direction, way in self._ways.items():
            here, there = direction[0], direction[1]
            fake, real = outputs[f"fake_{there}"], outputs[f"real_{there}"]
            pair = self._pair(batch, real, here)
            way.output_places.append(first_places(places, batch, here))
            way.target_places.append(first_places(places, batch, there))
            if "l1" in self.metrics and pair is not None:
                way.l1.append((fake.float() - pair.float()).abs().flatten(1).mean(1))
            if not way.suite.names:
                continue
            show = _shown(trainer, outputs.get("real_a"), there)
            if len(fake):
                classes = (fake.argmax(1), pair.argmax(1)) if self._reads_classes and pair is not None else ()
                way.suite.update(show(fake), None if pair is None else show(pair), *classes)
            if set(SET_METRICS) & set(way.suite.names):
                data = trainer.datamodule  # type: ignore[attr-defined]
                names = batch.get("name", batch.get(f"name_{there}")) if isinstance(batch, Mapping) else None
                way.add_targets(real, show, names, place, data)

    def _pair(self, batch: Any, real: Tensor, here: str) -> Tensor | None:
        """Return what the outputs of side ``here`` should look like, if anybody knows."""
        if _one_sided(batch):  # there are no inputs that could have targets
            return None
        if not isinstance(batch, Mapping) or f"first_{here}" not in batch:
            return real
        if f"partner_{here}" in batch and not set(SEGMENTATION_METRICS) & set(self.metrics):
            partner: Tensor = batch[f"partner_{here}"]
            return partner[batch[f"first_{here}"]]
        paired = [name for name in self.metrics if name not in SET_METRICS]
        if paired:
            raise UserError(
                f"{_PREFIX}metrics: {', '.join(paired)} compare pairs, and this data has none; give "
                f"{_PREFIX}metrics=[kid]"
            )
        return None

    @torch.no_grad()
    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        several, measures_l1 = trainer.world_size > 1, "l1" in self.metrics
        ways = {key: way.compute(several, measures_l1) for key, way in self._ways.items()}
        figures = dict(ways["ab"])
        if len(ways) > 1:
            for name in ways["ab"]:
                figures |= {f"{name}_{direction}": found[name] for direction, found in ways.items()}
                figures[name] = sum(found[name] for found in ways.values()) / len(ways)
        for name in SET_METRICS:
            # A rehearsal with one batch of one image is no reason to stop.
            if math.isnan(figures.get(name, 0.0)) and not _rehearses(trainer):
                raise UserError(
                    f"{_PREFIX}metrics: {name} compares sets, and there is but one {stage} image; leave "
                    f"{name} out, or give at least 2"
                )
        # In the order that was asked for; what is not a metric's very name (kid_std, kid_ab) comes last.
        order = {name: place for place, name in enumerate(self.metrics)}
        for name, value in sorted(figures.items(), key=lambda item: order.get(item[0], len(order))):
            # Every process has the same figure already; the largest of equal ones is that figure to the bit.
            pl_module.log(f"{stage}/{name}", value, batch_size=1, sync_dist=several, reduce_fx="max")


class _Way:
    """What was measured of one direction.

    Args:
        suite: Measures all but ``l1``.
    """

    def __init__(self, suite: MetricSuite) -> None:
        self.suite = suite
        self.l1: list[Tensor] = []
        self.output_places: list[Tensor] = []
        self.target_places: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._known_data: object = None
        self._known: dict[tuple[str, int], tuple[Any, Tensor]] = {}

    def back(self) -> _Way:
        """Return the other direction, measured by the same networks."""
        return _Way(self.suite.another())

    def reset(self) -> None:
        """Forget the outputs, and which of the targets were among them."""
        self.suite.reset()
        self.l1, self._targets = [], []
        self.output_places, self.target_places = [], []

    def add_targets(
        self,
        real: Tensor,
        show: Callable[[Tensor], Tensor],
        names: list[str] | None,
        place: tuple[str, int],
        data: object,
    ) -> None:
        """Add a batch to the targets; its features come from the last validation where it is the same batch.

        Args:
            real: The targets as the network sees them.
            show: Makes uint8 RGB of them.
            names: Of the images; None takes nothing from the last validation.
            place: Stage and number of the batch.
            data: The data module.
        """
        if not len(real):
            return
        if data is not self._known_data:
            self._known_data, self._known = data, {}
        what = None if names is None else (list(names), real.shape)
        known, features = self._known.get(place, (None, None))
        if features is None or what is None or known != what:
            features = self.suite.extract(show(real))
            self._known[place] = (what, features)
        self._targets.append(features)

    def compute(self, several: bool, measures_l1: bool) -> dict[str, float]:
        """Return all figures, of all processes if there are ``several``."""
        self.suite.use_targets(self._targets)
        outputs, targets = (
            torch.cat(places) if places else torch.empty(0, dtype=torch.long)
            for places in (self.output_places, self.target_places)
        )
        figures = self.suite.compute(outputs, targets) if several else self.suite.compute()
        if measures_l1:
            rows = torch.cat(self.l1 or [torch.empty(0, device=self.suite.device)])[:, None]
            figures["l1"] = float((gather_rows(rows, outputs) if several else rows).mean())
        return figures


def _shown(trainer: Trainer, real_a: Tensor | None, side: str) -> Callable[[Tensor], Tensor]:
    """Return what makes uint8 RGB of images of a side, as they would be saved."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if side == "a":
        return lambda images: data.display_input(images)
    return lambda images: data.display_output(images, images if real_a is None else real_a)


def _one_sided(batch: Any) -> bool:
    """Return whether a batch holds images of one domain, for a method without an input side."""
    return isinstance(batch, Mapping) and "real" in batch


def _rehearses(trainer: Trainer) -> bool:
    return bool(trainer.sanity_checking or trainer.fast_dev_run)  # type: ignore[attr-defined]
