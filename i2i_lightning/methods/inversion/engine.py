"""The search for the latents of a batch of images, as a state machine that any loop can drive.

Every image has its own objective, schedule, random numbers, best latent and early stop. Losses are summed
over the batch, never averaged, so that an image's gradient does not depend on its batch, and Adam works
number by number: a batch ends where its images would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from i2i_lightning.losses.noise import noise_regularizer, normalise_noise_
from i2i_lightning.methods.inversion.embedding import Embedding, render
from i2i_lightning.methods.inversion.leaves import Leaves
from i2i_lightning.methods.inversion.objective import (
    NO_RECOGNISER,
    InversionLoss,
    Objective,
    latent_distance,
)
from i2i_lightning.methods.inversion.stages import Stage, check_stages
from i2i_lightning.methods.inversion.starts import FirstLatents, Start, Statistics, first_noise, statistics
from i2i_lightning.methods.inversion.targets import Targets, normal
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

TRACES = 50
"""Points of a stage at which the terms are kept for its curve."""
LOOK_EVERY = 10
"""Steps between two looks at who has stopped: each waits for the device."""

COUNTERS = ("stage_index", "step_index", "image_index", "space", "own_noise")
TENSORS = ("steps", "kept_latent", "present", "stopped", "reached", "stale", "reference", "anchor")
"""Attributes of a search that its state holds as they are."""


@dataclass
class Best:
    """The lowest objective of every image in a stage so far, and where it was: all (N, ...)."""

    total: Tensor
    latent: Tensor
    noise: list[Tensor]


class Search:
    """Embed batches of images, one batch after the other.

    ``begin`` takes a batch, and ``step`` takes one step with all images that still move, until ``done``. A
    loop of another kind calls ``prepare`` and ``terms``, ``note`` before the optimiser steps, and ``advance``
    after it, as ``step`` does.

    The generator and the networks of the objective are left frozen and in evaluation mode. A tuned generator
    is put back as it was.

    Args:
        generator: What draws.
        stages: Stages by name, in order; None leaves one out.
        loss: Objective and weights.
        start: Where to begin; None is the mean latent.
        seed: Of all random numbers, together with an image's name.

    Attributes:
        latent: The latents of the images ``present``: (n, z_dim), (n, 1, D) or (n, L, D), as the space is.
        noise: Their noise maps, each (n, 1, h, w).
        optimizers: One Adam for each player that a stage has.
        space: The space of ``latent``.
        present: Indices of the images that are worked on, (n,).
        stopped: Which of all N images have stopped in this stage.
        stage_index: Number of the stage that is under way.
        step_index: Number of its step that comes next.
        done: Whether all stages are over.

    Raises:
        UserError: If the stages do not fit each other, the objective or the generator.
    """

    def __init__(
        self,
        generator: StyleGenerator,
        stages: Mapping[str, Stage | None],
        loss: InversionLoss,
        start: Start | None = None,
        seed: int = 0,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.loss = loss
        self.start = start or Start()
        self.seed = seed
        self.notes: list[str] = []
        self.stages = self._checked(check_stages(stages))
        self.names = list(self.stages)
        self.first_space = next((stage.space for stage in self.stages.values() if stage.space), "w_plus")
        if self.start.kind == "mean" and self.first_space == "z":
            raise UserError("method.start.kind=mean: z has no mean latent; give best, mapped or random")
        self._leaves = Leaves(generator, self.stages.values())
        self.latent, self.noise = self._leaves.latent, self._leaves.noise
        self.optimizers = self._leaves.optimizers
        self.targets: Targets | None = None
        self.done = True
        self._statistics: tuple[Tensor | None, Statistics] | None = None

    def _checked(self, stages: dict[str, Stage]) -> dict[str, Stage]:
        """Return the stages that this generator can go through."""
        found = {}
        for name, stage in stages.items():
            if stage.moves_noise and not self.generator.noise_shapes:
                if stage.space is not None:
                    raise UserError(
                        f"method.stages.{name}.moves: this generator has no noise maps; leave noise out"
                    )
                self.notes.append(f"stage {name} was left out: this generator has no noise maps")
                continue
            if not self.weights_of(stage):
                raise UserError(
                    f"method.stages.{name}: no term of the objective that it could lower has a weight"
                )
            if self.loss.identity is None and "identity" in {**self.weights_of(stage), **stage.stop_at}:
                raise UserError(f"method.stages.{name}: {NO_RECOGNISER}")
            wrong = [row for row in stage.rows or () if not 0 <= row < self.generator.num_ws]
            if wrong or (stage.rows is not None and stage.space != "w_plus"):
                raise UserError(
                    f"method.stages.{name}.rows={list(stage.rows or ())}: for a stage that moves w_plus, "
                    f"rows from 0 to {self.generator.num_ws - 1}"
                )
            perceptual = self.loss.perceptual
            if "perceptual" in stage.stop_at and (perceptual is None or perceptual.substitute):
                # The rest as well: alone, it would be reached long before all of them are.
                stage = replace(stage, stop_at={})
                takes = "takes all its steps" if stage.patience is None else "stops by patience alone"
                self.notes.append(f"stage {name} {takes}: stop_at.perceptual is meant for a learned distance")
            for term in stage.stop_at:
                if term not in self.weights_of(stage):
                    raise UserError(
                        f"method.stages.{name}.stop_at.{term}: a stage stops by what it weighs, and this one "
                        f"weighs {', '.join(self.weights_of(stage))}"
                    )
            found[name] = stage
        weighted = {term for stage in found.values() for term in self.weights_of(stage)}
        if self.loss.identity is not None and "identity" not in weighted:
            self.notes.append("identities are not compared: give loss.lambda_identity a weight")
        return check_stages(found)

    # -------------------- a batch

    @property
    def device(self) -> torch.device:
        """Where the generator lies, and therefore everything."""
        return self.generator.w_avg.device

    @property
    def dtype(self) -> torch.dtype:
        """What latents are kept in: the generator's own precision, autocast or not."""
        return self.generator.w_avg.dtype

    @property
    def stage(self) -> Stage:
        """The stage that is under way; the last one after the end."""
        return self.stages[self.names[self.stage_index]]

    def steps_per_batch(self, size: int) -> int:
        """Return how many steps a batch of ``size`` images takes at most."""
        return sum(stage.steps * (size if stage.tunes else 1) for stage in self.stages.values())

    @torch.no_grad()
    def begin(
        self, targets: Targets, latent: Tensor | None = None, noise: Sequence[Tensor] | None = None
    ) -> None:
        """Begin with another batch.

        Args:
            targets: The images.
            latent: Their first latents, instead of what ``start`` says; see :meth:`FirstLatents.given`.
            noise: Their first noise maps, each (1 or N, 1, h, w).

        Raises:
            UserError: If the targets, or what they begin with, do not fit the generator.
        """
        self.attach(targets)
        assert self.targets is not None
        count = len(targets)
        self.stage_index = self.step_index = self.image_index = 0
        self.space = self.first_space
        self.trace: list[dict[str, Any]] = []
        self.steps = torch.zeros(count, dtype=torch.long, device=self.device)
        self.tuned: list[dict[str, Tensor]] = []
        self.done = count == 0
        self.own_noise = noise is not None or self.start.noise == "random"
        if self.done:
            return
        self.kept_noise = first_noise(self.generator, self.targets, self.start.noise, self.seed, noise)
        self.kept_latent = self._first_latents(latent)
        self._begin_stage()

    @torch.no_grad()
    def attach(self, targets: Targets) -> None:
        """Take the targets, without beginning anew: before ``load_state_dict``."""
        if len(targets):
            targets.check(self.generator)
            for name, stage in self.stages.items():
                for term in targets.lacking.intersection(stage.stop_at):
                    raise UserError(
                        f"method.stages.{name}.stop_at.{term}: the images come without one to compare with"
                    )
        self.targets = targets.to(self.device, self.dtype)
        self.objective = Objective(self.loss, self.targets, self._terms_of_images()) if len(targets) else None

    def _terms_of_images(self) -> set[str]:
        return {name for stage in self.stages.values() for name in self.weights_of(stage)}

    def statistics(self) -> Statistics:
        """Return mean and spread of w for the images at hand."""
        assert self.targets is not None
        label = self.targets.label
        if self._statistics is None or not _same(self._statistics[0], label):
            with torch.autocast(self.device.type, enabled=False):
                self._statistics = label, statistics(self.generator, label)
        return self._statistics[1]

    def _first_latents(self, given: Tensor | None) -> Tensor:
        assert self.targets is not None
        first = FirstLatents(
            self.generator, self.targets, self.start, self.space, self.seed, self.statistics()
        )
        if given is not None:
            return first.given(given)
        kind = self.start.kind
        if kind == "given":
            raise UserError("method.start.kind=given: there is no latent to begin with")
        if kind == "best":
            weights = self.weights
            assert self.objective is not None
            objective = self.objective
            return first.best(lambda images, index: objective.cross(images, weights, index))
        if kind == "previous":  # the first of all frames has none before it
            return first.mapped() if self.space == "z" else first.mean()
        return {"mean": first.mean, "random": first.random, "mapped": first.mapped}[kind]()

    # -------------------- a step

    def step(self) -> None:
        """Take a step with all images that still move."""
        optimizer = self.prepare()
        with torch.enable_grad():
            terms = self.terms()
            self.note(terms)
            weights = self.weights
            torch.stack([weights[name] * value.sum() for name, value in terms.items()]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        self.advance()

    def prepare(self) -> Optimizer:
        """Set the rates of this step and return its optimiser."""
        return self._leaves.prepare(self.stage, self.step_index)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of this stage's terms."""
        return self.weights_of(self.stage)

    def weights_of(self, stage: Stage) -> dict[str, float]:
        """Return the weight of every term that ``stage`` could lower."""
        idle = set() if stage.moves_noise else {"noise"}
        if self.loss.perceptual is None:
            idle |= {"perceptual", "style"}
        if stage.space is None:
            idle |= {"prior", "anchor"}
        weights = {**self.loss.weights(), **stage.weights}
        return {name: value for name, value in weights.items() if value > 0 and name not in idle}

    def terms(self) -> dict[str, Tensor]:
        """Return the terms of the objective of the images present, unweighted, (n,) each."""
        stage, latent = self.stage, self.latent
        if stage.rows is not None:
            moves = torch.zeros(latent.shape[1], 1, dtype=torch.bool, device=latent.device)
            moves[list(stage.rows)] = True
            latent = torch.where(moves, latent, latent.detach())  # type: ignore[assignment]
        if stage.w_noise > 0:
            latent = latent + self._latent_noise()  # type: ignore[assignment]
        return self._terms(latent, self.noise)

    def _terms(self, latent: Tensor, noise: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the terms of ``latent`` and ``noise``, of the images present."""
        assert self.targets is not None
        assert self.objective is not None
        weights, w_plus = self.weights, self.w_plus(latent, self.present)
        image = self.generator.synthesis(w_plus, list(noise) if self.own_noise else "const")
        terms = self.objective.terms(image, weights, self.present)
        terms |= self._terms_of_latents(weights, w_plus, noise, self.anchor[self.present], self.present)
        return {name: terms[name] for name in weights if name in terms}

    def _terms_of_latents(
        self,
        weights: Mapping[str, float],
        w_plus: Tensor,
        noise: Sequence[Tensor],
        anchor: Tensor,
        index: Tensor,
    ) -> dict[str, Tensor]:
        assert self.targets is not None
        terms: dict[str, Tensor] = {}
        statistics = self.statistics()
        std = _rows(statistics.std, index)
        if "prior" in weights:
            terms["prior"] = latent_distance(w_plus, _rows(statistics.mean, index)[:, None], std).mean(1)
        if "anchor" in weights:
            given = self.targets.rows("anchor", index)
            terms["anchor"] = latent_distance(w_plus, anchor if given is None else given, std).mean(1)
        if "noise" in weights:
            terms["noise"] = noise_regularizer(noise)
        return terms

    def _latent_noise(self) -> Tensor:
        """Return the noise that is added to the latents in this step."""
        assert self.targets is not None
        size = self.stage.latent_noise(self.step_index)
        names = [self.targets.names[index] for index in self.present.tolist()]
        shape, place = self.latent.shape[1:], (self.stage_index, self.step_index)
        draws = torch.stack([normal(shape, self.seed, name, "w_noise", *place) for name in names])
        draws = draws.to(self.latent) * size
        return (
            draws if self.space == "z" else draws * _rows(self.statistics().std, self.present)[:, None, None]
        )

    @torch.no_grad()
    def note(self, terms: Mapping[str, Tensor]) -> None:
        """Take down the best so far, the curve, and who is to stop; before the optimiser steps.

        Args:
            terms: Of the latents as they are now.
        """
        stage, weights, present = self.stage, self.weights, self.present
        total = torch.stack([weights[name] * value.detach() for name, value in terms.items()]).sum(0)
        if self.best is not None:
            better = (total < self.best.total[present]) & ~self.stopped[present]
            pairs = [(self.best.total, total), (self.best.latent, self.latent)]
            for best, now in [*pairs, *zip(self.best.noise, self.noise, strict=True)]:
                best[present] = torch.where(_column(better, now), now, best[present])
        if stage.patience is not None:
            reference = self.reference[present]
            gains = ~torch.isfinite(reference) | (total < reference * (1 - stage.min_gain))
            self.reference[present] = torch.where(gains, total, reference)
            self.stale[present] = torch.where(gains, 0, self.stale[present] + 1)
            self.reached[present] |= self.stale[present] >= stage.patience
        if stage.stop_at:
            low = [terms[name].detach() <= value for name, value in stage.stop_at.items()]
            self.reached[present] |= torch.stack(low).all(0)
        if self.step_index % max(1, stage.steps // TRACES) == 0 or self.step_index == stage.steps:
            self._record(terms, total)
        if stage.stops:
            if stage.tunes:
                if bool(self.reached[self.image_index]):
                    # The step that is about to be taken changes nothing, as for latents in advance().
                    for group in self.optimizers["generator"].param_groups:
                        group["lr"] = 0.0
            else:
                self._held = [leaf.detach().clone() for leaf in self._leaves.of_images]

    def _record(self, terms: Mapping[str, Tensor], total: Tensor) -> None:
        names = [*terms, "total"]
        values = torch.stack([*(value.detach().to(total.dtype) for value in terms.values()), total]).tolist()
        place = {"stage": self.names[self.stage_index], "step": self.step_index}
        curves = dict(zip(names, values, strict=True))
        self.trace.append({**place, "images": self.present.tolist(), **curves})

    @torch.no_grad()
    def advance(self) -> None:
        """Finish a step: keep those who stop as they were before it, and go on to what comes next."""
        stage = self.stage
        if stage.moves_noise and stage.normalise_noise:
            normalise_noise_(self.noise)
        if stage.stops:
            self.stopped |= self.reached
            if not stage.tunes:
                stopped = self.stopped[self.present]
                for leaf, held in zip(self._leaves.of_images, self._held, strict=True):
                    leaf.copy_(torch.where(_column(stopped, leaf), held, leaf))
        self.steps[self.present] += ~self.stopped[self.present]
        self.step_index += 1
        if stage.tunes:
            if self.step_index == stage.steps or (stage.stops and bool(self.stopped[self.image_index])):
                self._finish_image()
        elif self.step_index == stage.steps:
            self._finish_stage()
        elif stage.stops and self.step_index % LOOK_EVERY == 0:
            self._let_go()

    # -------------------- stages

    def _begin_stage(self) -> None:
        """Put everything in place for a stage: space, leaves, optimiser, records."""
        assert self.targets is not None
        stage, count = self.stage, len(self.targets)
        everyone = torch.arange(count, device=self.device)
        if stage.space is not None and stage.space != self.space:
            w_plus = self.w_plus(self.kept_latent, everyone)
            self.space, self.kept_latent = stage.space, w_plus if stage.space == "w_plus" else w_plus[:, :1]
            self.kept_latent = self.kept_latent.clone()
        self.step_index = self.image_index = 0
        self.stopped = torch.zeros(count, dtype=torch.bool, device=self.device)
        self.reached = torch.zeros_like(self.stopped)
        self.stale = torch.zeros_like(self.steps)
        self.reference = torch.full((count,), torch.inf, device=self.device, dtype=self.dtype)
        self.anchor = self.w_plus(self.kept_latent, everyone).clone()
        self.own_noise = self.own_noise or stage.moves_noise
        self.best: Best | None = None
        if stage.keep == "best":
            maps = [map_.clone() for map_ in self.kept_noise]
            self.best = Best(self.reference.clone(), self.kept_latent.clone(), maps)
        self._let_move(everyone[:1] if stage.tunes else everyone)

    def _let_move(self, index: Tensor) -> None:
        """Work on the images ``index`` from now on, with a fresh optimiser."""
        self.present = index
        self._leaves.begin(self.stage, self.kept_latent[index], [kept[index] for kept in self.kept_noise])

    def _let_go(self) -> None:
        """Leave out those who have stopped once they are half of the batch: a smaller one is faster."""
        moving = ~self.stopped[self.present]
        left = int(moving.sum())
        if left == 0:
            self._finish_stage()
        elif 2 * left <= len(moving):
            self._write_back()
            index = moving.nonzero().flatten()
            self._leaves.keep(self.stage, index)
            self.present = self.present[index]

    def _write_back(self) -> None:
        """Keep the latents and maps of those present."""
        for kept, leaf in zip([self.kept_latent, *self.kept_noise], self._leaves.of_images, strict=True):
            kept[self.present] = leaf.detach()

    def _finish_stage(self) -> None:
        """Keep what the stage has found."""
        if self.best is not None and not bool(self.stopped[self.present].all()):
            self.note(self._terms(self.latent.detach(), [leaf.detach() for leaf in self.noise]))
        self._write_back()
        if self.best is not None:
            self.kept_latent, self.kept_noise = self.best.latent, self.best.noise
        self._next_stage()

    def _finish_image(self) -> None:
        """Keep the weights that were tuned for an image, and go on to the next image."""
        assert self.targets is not None
        self.tuned.append(self._leaves.take_weights())
        self.image_index += 1
        self.step_index = 0
        if self.image_index == len(self.targets):
            self._next_stage()
        else:
            self._let_move(torch.tensor([self.image_index], device=self.device))

    def _next_stage(self) -> None:
        self.best, self._held = None, []
        if self.stage_index + 1 < len(self.stages):
            self.stage_index += 1
            self._begin_stage()
            return
        self.done = True
        self._leaves.rest()

    # -------------------- results

    def w_plus(self, latent: Tensor, index: Tensor) -> Tensor:
        """Return ``latent`` of the images ``index`` as w_plus (n, L, D)."""
        assert self.targets is not None
        if self.space == "z":
            latent = self.generator.mapping.to_w(latent, self.targets.rows("label", index))[:, None]
        return latent.expand(-1, self.generator.num_ws, -1)

    @torch.no_grad()
    def now(self) -> tuple[Tensor, list[Tensor]]:
        """Return the best latents and noise maps so far, (N, ...), in the space of the stage."""
        if self.done:
            return self.kept_latent, self.kept_noise
        if self.best is not None:
            return self.best.latent, self.best.noise
        latent, noise = self.kept_latent.clone(), [map_.clone() for map_ in self.kept_noise]
        for kept, leaf in zip([latent, *noise], self._leaves.of_images, strict=True):
            kept[self.present] = leaf.detach()
        return latent, noise

    def weights_now(self) -> list[Mapping[str, Tensor] | None] | None:
        """Return the generator's weights that each image is drawn with so far; None where none are tuned.

        Those that were tuned for it, None for those that the generator has at the moment, and for images
        that are yet to come those that it began with.
        """
        assert self.targets is not None
        if not self._leaves.original:
            return None
        count = len(self.targets)
        weights: list[Mapping[str, Tensor] | None] = [*self.tuned, None, *[self._leaves.original] * count]
        return weights[:count]

    @torch.no_grad()
    def embedding(self) -> Embedding:
        """Return what was found; of a search that is not ``done``, what it has so far."""
        assert self.targets is not None
        generator, count = self.generator, len(self.targets)
        everyone = torch.arange(count, device=self.device)
        w_plus = generator.w_avg.new_zeros(0, generator.num_ws, generator.w_dim)
        noise: list[Tensor] | None = None
        terms: dict[str, Tensor] = {}
        total = distance = w_plus.new_zeros(count)
        tuned = self.tuned if len(self.tuned) == count > 0 else None
        if count:
            latent, maps = self.now()
            w_plus = self.w_plus(latent, everyone).clone()
            noise = [map_.clone() for map_ in maps] if self.own_noise else None
        image = render(generator, w_plus, noise, self.weights_now())
        if count:
            assert self.objective is not None
            with torch.autocast(self.device.type, enabled=False):
                names = self._terms_of_images() - (set() if self.own_noise else {"noise"}) - {"anchor"}
                weights = dict.fromkeys(sorted(names), 1.0)
                terms = self.objective.terms(image, weights, everyone)
                terms |= self._terms_of_latents(weights, w_plus, noise or [], w_plus, everyone)
                zero = torch.zeros_like(total)
                total = sum((value * terms.get(name, zero) for name, value in self.weights.items()), zero)
                statistics = self.statistics()
                distance = latent_distance(w_plus, statistics.mean[:, None], statistics.std).sqrt().mean(1)
        return Embedding(
            names=list(self.targets.names),
            w_plus=w_plus,
            noise=noise,
            image=image,
            terms=terms,
            total=total,
            steps=self.steps.clone(),
            distance=distance,
            trace=list(self.trace),
            tuned=None if tuned is None else list(tuned),
            label=self.targets.label,
            notes=[*self.notes, *self.loss.notes()],
            settings=self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """Return what the search was asked for, as plain containers."""
        return {
            "stages": {name: _plain(asdict(stage)) for name, stage in self.stages.items()},
            "start": _plain(asdict(self.start)),
            "loss": self.loss.settings(),
            "seed": self.seed,
        }

    # -------------------- going on elsewhere

    def state_dict(self) -> dict[str, Any]:
        """Return where a half-done batch stands, as plain containers and tensors on the CPU."""
        if self.targets is None:
            return {"names": None}
        state: dict[str, Any] = {"names": list(self.targets.names), "done": self.done}
        state |= {name: getattr(self, name) for name in COUNTERS}
        state["trace"], state["tuned"] = list(self.trace), list(self.tuned)
        if len(self.targets) == 0:
            return state
        state["tensors"] = {name: getattr(self, name) for name in TENSORS}
        state |= self._leaves.state_dict(None if self.done else self.stage)
        state["kept_noise"] = self.kept_noise
        if not self.done:
            state["best"] = None
            if self.best is not None:
                state["best"] = [self.best.total, self.best.latent, *self.best.noise]
        return _on_cpu(state)  # type: ignore[no-any-return]

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; ``attach`` has taken the same targets before.

        Raises:
            UserError: If it is of other images.
        """
        assert self.targets is not None
        if state["names"] != list(self.targets.names):
            raise UserError(
                f"this search stood at the images {_few(state['names'])}; the data now has "
                f"{_few(self.targets.names)} there: resume with the images it began with"
            )
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.done, self.trace, self.tuned = bool(state["done"]), list(state["trace"]), list(state["tuned"])
        self.best, self._held = None, []
        self.steps = torch.zeros(len(self.targets), dtype=torch.long, device=self.device)
        if len(self.targets) == 0:
            return
        for name, value in state["tensors"].items():
            setattr(self, name, value.to(self.device, copy=True))
        self.kept_noise = [map_.to(self.device, copy=True) for map_ in state["kept_noise"]]
        self._leaves.load_state_dict(state, None if self.done else self.stage)
        if not self.done and state["best"] is not None:
            total, latent, *noise = (value.to(self.device, copy=True) for value in state["best"])
            self.best = Best(total, latent, noise)


def embed(
    generator: StyleGenerator,
    targets: Targets,
    stages: Mapping[str, Stage | None],
    loss: InversionLoss,
    start: Start | None = None,
    seed: int = 0,
    latent: Tensor | None = None,
    noise: Sequence[Tensor] | None = None,
    watch: Callable[[Search], None] | None = None,
) -> Embedding:
    """Find the latents of ``targets``.

    Args:
        generator: What draws; left frozen.
        targets: The images, all searched for at once.
        stages: Stages by name, in order.
        loss: Objective and weights.
        start: Where to begin; None is the mean latent.
        seed: Of all random numbers, together with an image's name.
        latent: First latents, instead of ``start``'s.
        noise: First noise maps.
        watch: Called after every step.

    Raises:
        UserError: If something does not fit.
    """
    search = Search(generator, stages, loss, start, seed)
    search.begin(targets, latent, noise)
    while not search.done:
        search.step()
        if watch is not None:
            watch(search)
    return search.embedding()


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Return the items ``index`` of ``values (1 or N, ...)``, or the one that is for all."""
    return values if len(values) == 1 else values[index]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values (n,)`` in a shape that broadcasts over ``like (n, ...)``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.shape == right.shape and torch.equal(left, right)


def _plain(value: Any) -> Any:
    """Return ``value`` with plain lists and dicts in it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _on_cpu(value: Any) -> Any:
    """Return ``value`` with copies of its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_on_cpu(item) for item in value]
    return value


def _few(names: Sequence[str] | None) -> str:
    return "none" if not names else ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
