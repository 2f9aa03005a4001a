"""What moves in a search: latents, noise maps and weights of the generator, and their optimisers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from i2i_lightning.methods.inversion.stages import Stage
from i2i_lightning.networks.style import StyleGenerator

NOISE_GAIN = 0.1
"""What a step of Adam on a noise map does to the image at first, root mean square in [-1, 1]."""
FASTEST = 1000.0
"""Highest rate that is chosen for a noise map."""


class Leaves:
    """Latents and noise maps of the images that are worked on, the generator's weights, and their optimisers.

    The parameters stay the same objects, so that an optimiser is made once: images come and go by their
    ``data``.

    Args:
        generator: What draws; its weights are leaves where a stage tunes them.
        stages: All stages that there will be.

    Attributes:
        latent: (n, z_dim), (n, 1, D) or (n, L, D), as the space is.
        noise: Noise maps, each (n, 1, h, w).
        optimizers: One Adam for each player that a stage has.
        original: The generator's weights as they were, by name; none where no stage tunes them.
    """

    def __init__(self, generator: StyleGenerator, stages: Iterable[Stage]) -> None:
        stages = list(stages)
        self.generator = generator
        self.latent = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.noise = [nn.Parameter(torch.zeros(0), requires_grad=False) for _ in generator.noise_shapes]
        self.optimizers = self._make_optimizers(stages)
        self._auto_rates: list[float] | None = None
        tunes = any(stage.tunes for stage in stages)
        self.original = {name: p.detach().clone() for name, p in self._tunable()} if tunes else {}

    def _make_optimizers(self, stages: Iterable[Stage]) -> dict[str, Adam]:
        """Return one optimiser for each player; rates, betas and epsilon are set stage by stage."""
        tunable = [p for _, p in self._tunable()]
        maps = [[leaf] for leaf in self.noise]  # each may have a rate of its own
        groups = {
            "latent": [[self.latent]],
            "noise": maps,
            "joint": [[self.latent], *maps],
            "generator": [tunable],
        }
        players = dict.fromkeys(stage.player for stage in stages)
        return {
            player: Adam([{"params": list(group)} for group in groups[player]], lr=0.0) for player in players
        }

    def _tunable(self) -> list[tuple[str, nn.Parameter]]:
        """Return the weights that pivotal tuning moves: the mapping plays no part in an image of w."""
        return [(f"synthesis.{name}", p) for name, p in self.generator.synthesis.named_parameters()]

    @property
    def of_images(self) -> list[nn.Parameter]:
        """Latents and noise maps: what every image has of its own."""
        return [self.latent, *self.noise]

    # -------------------- a step

    def prepare(self, stage: Stage, step: int) -> Optimizer:
        """Set the rates of a step of ``stage`` and return its optimiser."""
        optimizer = self.optimizers[stage.player]
        of_noise = self._noise_rates(stage) if stage.moves_noise else []
        rates = {"noise": of_noise, "joint": [stage.rate, *of_noise]}.get(stage.player, [stage.rate])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * stage.factor(step)
        return optimizer

    def _noise_rates(self, stage: Stage) -> list[float]:
        if stage.noise_rate == "auto":
            if self._auto_rates is None:
                self._auto_rates = noise_rates(self.generator)
            return self._auto_rates
        return [stage.rate if stage.noise_rate is None else stage.noise_rate] * len(self.noise)

    # -------------------- coming and going

    def begin(self, stage: Stage, latent: Tensor, noise: Sequence[Tensor]) -> None:
        """Let copies of ``latent`` and ``noise`` move in ``stage``, with a fresh optimiser."""
        for leaf, value in zip(self.of_images, [latent, *noise], strict=True):
            leaf.data = value.clone()
        self._set_gradients(stage)
        optimizer = self.optimizers[stage.player]
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["betas"], group["eps"] = tuple(stage.betas), stage.eps

    def _set_gradients(self, stage: Stage | None) -> None:
        """Let gradients flow to what moves in ``stage``, and nowhere else; None: nothing moves."""
        self.latent.requires_grad_(stage is not None and stage.space is not None)
        for leaf in self.noise:
            leaf.requires_grad_(stage is not None and stage.moves_noise)
        for _, parameter in self._tunable():
            parameter.requires_grad_(stage is not None and stage.tunes)

    def keep(self, stage: Stage, index: Tensor) -> None:
        """Leave out all images but those at ``index``, in the optimiser too."""
        states = self.optimizers[stage.player].state
        for leaf in self.of_images:
            leaf.data = leaf.data[index].clone()
            for name, value in states.get(leaf, {}).items():
                if value.dim() > 0:  # moments; the count of steps is common
                    states[leaf][name] = value[index].clone()

    def take_weights(self) -> dict[str, Tensor]:
        """Return the generator's weights as they are, on the CPU, and put it back as it was."""
        tuned = {name: p.detach().to("cpu", copy=True) for name, p in self._tunable()}
        for name, parameter in self._tunable():
            parameter.data.copy_(self.original[name])
        return tuned

    def rest(self) -> None:
        """Let nothing move, and forget the moments."""
        self._set_gradients(None)
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    # -------------------- going on elsewhere

    def state_dict(self, stage: Stage | None) -> dict[str, Any]:
        """Return everything as plain containers and tensors, which are not copied.

        Args:
            stage: What is under way; None after the last stage.
        """
        state: dict[str, Any] = {"latent": self.latent.data, "noise": [leaf.data for leaf in self.noise]}
        if stage is not None and stage.tunes:
            state["weights"] = {name: p.data for name, p in self._tunable()}
        if stage is not None:
            state["optimizers"] = {name: each.state_dict() for name, each in self.optimizers.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any], stage: Stage | None) -> None:
        """Go on with what ``state_dict`` returned of the same stage."""
        for leaf, value in zip(self.of_images, [state["latent"], *state["noise"]], strict=True):
            leaf.data = value.to(self.generator.w_avg.device, copy=True)
        if stage is None:
            return
        for name, parameter in self._tunable() if stage.tunes else []:
            parameter.data.copy_(state["weights"][name])
        self._set_gradients(stage)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


@torch.no_grad()
def noise_rates(generator: StyleGenerator) -> list[float]:
    """Return a rate for each noise map with which it moves the image as fast in any generator.

    Generators multiply their maps by anything from 0.001 to 0.5, layer by layer: the rate is
    :data:`NOISE_GAIN` over what a map of deviation 1, alone, does to the image of the mean latent, root mean
    square, and not above :data:`FASTEST`.
    """
    w_plus = generator.w_avg.reshape(-1, generator.w_dim)[:1].expand(generator.num_ws, -1)[None]
    rng = torch.Generator().manual_seed(0)
    maps = [torch.zeros(1, 1, *shape).to(w_plus) for shape in generator.noise_shapes]

    def draw(noise: list[Tensor]) -> Tensor:
        # In full precision whatever surrounds the search: half of it rounds by more than a weak map does.
        with torch.autocast(w_plus.device.type, enabled=False):
            image: Tensor = generator.synthesis(w_plus, noise)
        return image

    without = draw(maps)
    rates = []
    for place, still in enumerate(maps):
        moved = torch.randn(still.shape, generator=rng).to(still)
        image = draw([*maps[:place], moved, *maps[place + 1 :]])
        effect = float((image - without).float().square().mean().sqrt())
        rates.append(min(NOISE_GAIN / max(effect, 1e-9), FASTEST))
    return rates
