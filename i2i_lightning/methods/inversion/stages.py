"""A preset is a list of stages: what moves, for how many steps, how fast, and towards what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from i2i_lightning.types import UserError

LATENTS = ("z", "w", "w_plus")
"""Spaces of the latent, from the smallest: a latent can go on in a larger one, never in a smaller."""
MOVABLE = (*LATENTS, "noise", "generator")

TERMS = ("perceptual", "mse", "mse_outside", "style", "identity", "prior", "anchor", "noise")
"""Terms of the objective; see :class:`~i2i_lightning.methods.inversion.objective.InversionLoss`."""


@dataclass(frozen=True)
class Stage:
    """A stretch of an inversion.

    The rate at step ``i`` of ``T``, with ``t = i / T``, is ``rate`` times ``(1 - cos(pi min(1, (1 - t) /
    ramp_down))) / 2 * min(1, t / ramp_up)`` (Karras et al. 2020, appendix D); a ramp of 0 is left out. With a
    ramp up, the first step therefore has rate 0, as the published projector has.

    Args:
        moves: What is optimised: one of ``z``, ``w`` and ``w_plus``, or ``noise``, or a latent and ``noise``
            together, or ``generator``, whose images go one by one.
        steps: Steps of Adam; per image where the generator moves.
        rate: Adam's rate, of the latent or of what moves alone.
        noise_rate: Adam's rate of the noise maps; None takes ``rate``, and ``auto`` one for each map by how
            much it does to the image; see :func:`~i2i_lightning.methods.inversion.leaves.noise_rates`.
        betas: Adam's betas.
        eps: Adam's epsilon. Where gradients are far smaller, a step is ``rate / eps`` times the gradient:
            rate, epsilon and weights only make sense together.
        ramp_up: Share of the steps in which the rate rises from 0.
        ramp_down: Share of the steps in which it falls to 0, along half a cosine.
        w_noise: Standard deviation of the noise that is added to the latent, in units of that of w; that of
            z is 1.
        w_noise_ramp: Share of the steps in which this noise fades, with the square of the time.
        weights: Weights of terms of the objective that this stage has instead of the loss's; 0 leaves a term
            out.
        rows: Numbers of the rows of w_plus that may move; None: all. ``i2i-invert``, which knows what they
            drive, takes words for them too: ``0-3``, ``coarse``.
        normalise_noise: Whether every noise map is brought back to mean 0 and variance 1 after each step.
        keep: ``best``, the latent of the lowest objective, or ``last``.
        patience: Steps without a gain after which an image stops; None never stops one.
        min_gain: Relative fall of the objective that counts as a gain.
        stop_at: An image stops where all these terms of the objective, unweighted, are this low or lower;
            terms that the stage weighs.

    Raises:
        UserError: If a value is impossible, or values contradict each other.
    """

    moves: Sequence[str]
    steps: int
    rate: float = 0.01
    noise_rate: float | Literal["auto"] | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    ramp_up: float = 0.0
    ramp_down: float = 0.0
    w_noise: float = 0.0
    w_noise_ramp: float = 0.75
    weights: Mapping[str, float] = field(default_factory=dict)
    rows: Any = None
    normalise_noise: bool = False
    keep: Literal["best", "last"] = "best"
    patience: int | None = None
    min_gain: float = 1e-3
    stop_at: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        moves = list(self.moves)
        shown = f"[{','.join(map(str, moves))}]"
        if not moves or len(set(moves)) < len(moves) or not set(moves) <= set(MOVABLE):
            raise UserError(f"moves={shown}: give one or more of {', '.join(MOVABLE)}")
        if len(set(moves) & set(LATENTS)) > 1 or ("generator" in moves and len(moves) > 1):
            raise UserError(
                f"moves={shown}: one of z, w and w_plus, with noise or without, or the generator alone"
            )
        if self.tunes and self.keep != "last":
            raise UserError("keep=best: of a generator that moves, the last weights are kept: keep=last")
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: give at least 1")
        positive = {"rate": self.rate, "eps": self.eps, "noise_rate": self.noise_rate}
        for name, value in positive.items():
            if isinstance(value, str) and not (name == "noise_rate" and value == "auto"):
                choices = ", auto or null" if name == "noise_rate" else ""
                raise UserError(f"{name}={value}: give a positive number{choices}")
            if isinstance(value, (int, float)) and not 0 < value < math.inf:
                raise UserError(f"{name}={value}: give a positive number")
        shares = {
            "ramp_up": self.ramp_up,
            "ramp_down": self.ramp_down,
            "w_noise_ramp": self.w_noise_ramp,
            "min_gain": self.min_gain,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value}: give a number from 0 to 1")
        if not 0 <= self.w_noise < math.inf:
            raise UserError(f"w_noise={self.w_noise}: give 0 or more")
        if self.w_noise > 0 and self.space is None:
            raise UserError(f"w_noise={self.w_noise}: in a stage that moves {shown} the latent stands still")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience={self.patience}: give at least 1 step, or null")
        for key, terms in (("weights", self.weights), ("stop_at", self.stop_at)):
            for name, value in terms.items():
                if name not in TERMS:
                    raise UserError(f"{key}.{name}: the terms are {', '.join(TERMS)}")
                if not 0 <= value < math.inf:
                    raise UserError(f"{key}.{name}={value}: give a finite number, 0 or more")
        if self.rows is not None:
            if not isinstance(self.rows, (list, tuple)) or not all(type(row) is int for row in self.rows):
                raise UserError(f"rows={self.rows}: give a list of whole numbers, or null for all rows")
            if not self.rows:
                raise UserError("rows=[]: nothing would move; give rows of w_plus, or null for all of them")

    @property
    def space(self) -> str | None:
        """The latent's space, where the latent moves."""
        return next((name for name in self.moves if name in LATENTS), None)

    @property
    def moves_noise(self) -> bool:
        """Whether noise maps move."""
        return "noise" in self.moves

    @property
    def tunes(self) -> bool:
        """Whether the generator moves."""
        return "generator" in self.moves

    @property
    def player(self) -> str:
        """The name of what moves, in logs: ``latent``, ``noise``, ``joint`` (both at once), ``generator``."""
        if self.tunes:
            return "generator"
        if self.space is None:
            return "noise"
        return "joint" if self.moves_noise else "latent"

    def factor(self, step: int) -> float:
        """Return what rates are multiplied by at ``step``, which counts from 0."""
        t = step / self.steps
        factor = 1.0
        if self.ramp_down > 0:
            factor *= 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - t) / self.ramp_down))
        if self.ramp_up > 0:
            factor *= min(1.0, t / self.ramp_up)
        return factor

    def latent_noise(self, step: int) -> float:
        """Return the standard deviation of the noise on the latent at ``step``, in units of that of w."""
        if self.w_noise == 0 or self.w_noise_ramp == 0:
            return 0.0
        return self.w_noise * max(0.0, 1.0 - step / self.steps / self.w_noise_ramp) ** 2

    @property
    def stops(self) -> bool:
        """Return whether images may stop before the last step."""
        return self.patience is not None or bool(self.stop_at)


def check_stages(stages: Mapping[str, Stage | None]) -> dict[str, Stage]:
    """Return the stages that are there.

    Raises:
        UserError: If there is none, one asks for a smaller space than the one before, or one follows another
            that tunes the generator.
    """
    there = {name: stage for name, stage in stages.items() if stage is not None}
    if not there:
        raise UserError("method.stages: there is none; take a preset, such as preset=fast")
    before, tuning = -1, ""
    for name, stage in there.items():
        if tuning:  # each image has its own generator by then, and a stage is searched in one for all
            raise UserError(
                f"method.stages.{name}: comes behind {tuning}, which tunes the generator for each image; "
                f"that must be the last stage: method.stages.{name}=null leaves this one out"
            )
        tuning = name if stage.tunes else ""
        if stage.space is not None:
            if LATENTS.index(stage.space) < before:
                raise UserError(
                    f"method.stages.{name}.moves: {stage.space} is smaller than {LATENTS[before]}, in which "
                    "the stage before ends"
                )
            before = LATENTS.index(stage.space)
    return there
