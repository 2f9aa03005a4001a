"""Watch how the adversarial game stands, and say in words when it goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from i2i_lightning.callbacks.previews import preview
from i2i_lightning.callbacks.readings import TermSums, batch_terms, batches_trained, log_every, log_step
from i2i_lightning.types import UserError

log = logging.getLogger(__name__)

PERFECT = 0.99
"""Both accuracies at or above this: the discriminator is never wrong."""
HUGE_LOGIT = 50.0
"""A mean logit beyond this is far outside what any of the objectives asks for."""
SAME_SPREAD = 0.1
"""Outputs that differ from each other less than this share of what the targets differ are all the same."""
STUCK_AT = 0.98
"""A value beyond this distance from 0 is at the end of the output's range."""
STUCK_SHARE = 0.3
"""More of the outputs' values at an end of the range than of the targets', by this share, is saturation."""
LEAST_TARGET_SPREAD = 0.02
"""Targets that differ less than this (range [-1, 1]) say nothing about collapse."""


class Health(Callback):
    """Log the discriminators' accuracy and logits, smoothed, and warn in words.

    Every ``log_every_n_steps`` batches the means since the last time are logged as
    ``health/<player>/accuracy_real``, ``accuracy_fake``, ``logit_real`` and ``logit_fake``. The warnings,
    each at most once in ``repeat_epochs`` epochs:

    * *perfect discriminator*: right about at least 99 % of real and of fake in every mean for
      ``patience_batches``.
    * *stuck discriminator*: calls at least 99 % of everything real, or everything fake, for as long.
    * *huge logits*: a mean logit beyond 50. None of these three for wgangp, whose critic has no scale.
    * *collapse*: on the preview samples, outputs differ from each other by less than a tenth of what the
      targets do (mean absolute difference of all pairs), in two epochs in a row. Real images are the targets
      where a method has no inputs.
    * *saturation*: 30 % more of the outputs' values than of the targets' lie beyond +-0.98, in two epochs in
      a row.

    An accuracy near one half with equal logits is what the game aims at, and no warning. Warnings go to the
    log, to W&B as alerts, and stay in ``warnings``, which the gallery shows and checkpoints keep.

    Args:
        patience_batches: Batches that a discriminator must have been perfect or stuck.
        repeat_epochs: Epochs before the same warning is given again.
        num_samples: Preview samples compared for collapse and saturation.
    """

    def __init__(self, patience_batches: int = 500, repeat_epochs: int = 10, num_samples: int = 8) -> None:
        for key, value in (
            ("patience_batches", patience_batches),
            ("repeat_epochs", repeat_epochs),
            ("num_samples", num_samples),
        ):
            if value < 1:
                raise UserError(f"callbacks.health.{key}={value}: give at least 1")
        self.patience_batches = patience_batches
        self.repeat_epochs = repeat_epochs
        self.num_samples = num_samples
        self.warnings: list[dict[str, Any]] = []
        """Every warning so far: ``epoch`` (from 1), ``batch`` of the run, ``kind`` and ``text``."""
        self._sums = TermSums()
        self._streaks: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the warnings, and how long each suspicion has held."""
        return {"warnings": [dict(warning) for warning in self.warnings], "streaks": dict(self._streaks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both back."""
        self.warnings = [dict(warning) for warning in state_dict["warnings"]]
        self._streaks = dict(state_dict["streaks"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch in; look at the means where the loggers read the device anyway."""
        terms = batch_terms(pl_module)
        if terms is not None:
            self._sums.add(terms)
        every = log_every(trainer) or 50
        if (log_step(trainer) + 1) % every == 0:
            self._look_at_terms(trainer, pl_module)

    def _look_at_terms(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches, terms = self._sums.count, self._sums.means()
        self._sums.clear()
        if terms is None:
            return
        means = dict(zip(terms.names, terms.values.tolist(), strict=True))
        players = [name.removesuffix("/accuracy_real") for name in means if name.endswith("/accuracy_real")]
        watched = {
            f"health/{player}/{name}": means[f"{player}/{name}"]
            for player in players
            for name in ("accuracy_real", "accuracy_fake", "logit_real", "logit_fake")
            if f"{player}/{name}" in means
        }
        for logger in trainer.loggers:
            if watched:
                logger.log_metrics(watched, step=log_step(trainer))
        if getattr(getattr(pl_module, "loss", None), "gan_mode", None) == "wgangp":
            return
        for player in players:
            self._judge_discriminator(trainer, player, means, batches)

    def _judge_discriminator(
        self, trainer: Trainer, player: str, means: Mapping[str, float], batches: int
    ) -> None:
        real, fake = means[f"{player}/accuracy_real"], means[f"{player}/accuracy_fake"]
        title = player.replace("_", " ")
        shown = f"accuracy {real:.2f} on real, {fake:.2f} on fake"
        if (
            self._held(f"{player} perfect", real >= PERFECT and fake >= PERFECT, batches)
            >= self.patience_batches
        ):
            self._warn(
                trainer,
                f"{player} perfect",
                f"the {title} tells real from fake every time ({shown}, for {self.patience_batches} "
                "batches): the generator learns little from it; try discriminator.spectral_norm=true, "
                "loss.gan_mode=lsgan, a lower optimizer.lr or a smaller discriminator",
            )
        for verdict, says in (
            ("real", real >= PERFECT and fake <= 1 - PERFECT),
            ("fake", real <= 1 - PERFECT and fake >= PERFECT),
        ):
            if self._held(f"{player} says {verdict}", says, batches) >= self.patience_batches:
                self._warn(
                    trainer,
                    f"{player} says {verdict}",
                    f"the {title} calls everything {verdict} ({shown}, for {self.patience_batches} batches): "
                    "it has stopped judging; try a lower optimizer.lr or another loss.gan_mode",
                )
        logits = [means.get(f"{player}/{name}", 0.0) for name in ("logit_real", "logit_fake")]
        if max(map(abs, logits)) > HUGE_LOGIT:
            self._warn(
                trainer,
                f"{player} logits",
                f"the {title}'s logits have grown to {logits[0]:.3g} on real and {logits[1]:.3g} on fake: "
                "its gradients explode or vanish; try discriminator.spectral_norm=true "
                "or a lower optimizer.lr",
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the preview's outputs with each other and with their targets."""
        if not hasattr(pl_module, "preview") or not hasattr(trainer.datamodule, "preview_batch"):  # type: ignore[attr-defined]
            return
        shown = preview(trainer, self.num_samples)
        if not shown.outputs:
            return
        ways = list(dict.fromkeys(shown.directions))
        for direction in ways:
            chosen = [index for index, way in enumerate(shown.directions) if way == direction]
            outputs, targets = (
                [images[index] for index in chosen] for images in (shown.outputs, shown.targets)
            )
            if len({tuple(image.shape) for image in [*outputs, *targets]}) == 1:
                suffix = f"_{direction}" if len(ways) > 1 else ""
                given = "input" if shown.has_inputs else "noise"
                self._judge_pictures(trainer, suffix, torch.stack(outputs), torch.stack(targets), given)

    def _judge_pictures(
        self, trainer: Trainer, suffix: str, outputs: Tensor, targets: Tensor, given: str
    ) -> None:
        title = f"generator{suffix}".replace("_", " ")
        loss = getattr(trainer.lightning_module, "loss", None)
        term, others = ("lambda_cycle" if hasattr(loss, "lambda_cycle") else "lambda_l1"), "targets"
        if given == "noise":
            term, others = "lambda_r1", "real images"
        spread, target_spread = pair_spread(outputs), pair_spread(targets)
        collapsed = target_spread > LEAST_TARGET_SPREAD and spread < SAME_SPREAD * target_spread
        if self._held(f"collapse{suffix}", collapsed, 1) >= 2:
            self._warn(
                trainer,
                f"collapse{suffix}",
                f"the {title} paints nearly the same image whatever the {given} (outputs differ by "
                f"{spread:.3f}, {others} by {target_spread:.3f}): it has collapsed; look at the previews, "
                f"try a higher loss.{term} or a lower optimizer.lr",
            )
        stuck, target_stuck = stuck_share(outputs), stuck_share(targets)
        if self._held(f"saturation{suffix}", stuck > target_stuck + STUCK_SHARE, 1) >= 2:
            self._warn(
                trainer,
                f"saturation{suffix}",
                f"{100 * stuck:.0f} % of the {title}'s output is stuck at the ends of its range ({others}: "
                f"{100 * target_stuck:.0f} %): the output layer is saturated and hardly learns; try a lower "
                "optimizer.lr or method.clip_norm=1",
            )

    def _held(self, kind: str, holds: bool, amount: int) -> int:
        """Return for how many batches (or epochs) in a row a suspicion has held, this look included."""
        self._streaks[kind] = self._streaks.get(kind, 0) + amount if holds else 0
        return self._streaks[kind]

    def _warn(self, trainer: Trainer, kind: str, text: str) -> None:
        epoch = trainer.current_epoch + 1
        if any(
            warning["kind"] == kind and epoch - warning["epoch"] < self.repeat_epochs
            for warning in self.warnings
        ):
            return
        self.warnings.append({"epoch": epoch, "batch": batches_trained(trainer), "kind": kind, "text": text})
        if trainer.is_global_zero:
            log.warning("epoch %d: %s", epoch, text)
            for logger in trainer.loggers:
                if hasattr(logger, "warn"):
                    logger.warn(kind, f"epoch {epoch}: {text}")


def pair_spread(images: Tensor) -> float:
    """Return the mean absolute difference over all pairs of ``images`` (N, C, H, W); 0 without a pair."""
    if len(images) < 2:
        return 0.0
    flat = images.flatten(1)
    pairs = torch.combinations(torch.arange(len(flat)))
    return float(torch.stack([(flat[i] - flat[j]).abs().mean() for i, j in pairs]).mean())


def stuck_share(images: Tensor) -> float:
    """Return the share of values within 0.02 of an end of [-1, 1], or beyond it."""
    return float((images.abs() > STUCK_AT).float().mean())
