"""Inversion as a method: an epoch embeds a chunk of images, a batch is one step on it.

Abdal, Qin, Wonka 2019 (arXiv 1904.03189) and 2020 (arXiv 1911.11544), Karras et al. 2020 (arXiv 1912.04958),
Roich et al. 2021 (arXiv 2106.05744): what they differ in is a preset.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from i2i_lightning.checkpoints.latents import Latent, check_belongs, load_latent
from i2i_lightning.methods.base import Method
from i2i_lightning.methods.checks import check_loss
from i2i_lightning.methods.inversion.embedding import Embedding, render
from i2i_lightning.methods.inversion.engine import Search
from i2i_lightning.methods.inversion.objective import InversionLoss
from i2i_lightning.methods.inversion.stages import Stage
from i2i_lightning.methods.inversion.starts import Start, in_space
from i2i_lightning.methods.inversion.targets import Targets
from i2i_lightning.methods.ranks import gather
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

REFUSAL = (
    "method=w_plus_inversion: this trains nothing, it embeds images in a style-based generator that is "
    "trained already: i2i-invert generator=... images=..."
)


class Inversion(Method):
    """Find the latents that reproduce images, in a generator that stays as it is.

    The data gives one chunk of images in every batch of an epoch, :meth:`steps_per_chunk` times, and another
    chunk in the next epoch. A chunk that is through before idles to the end of its epoch, as a process does
    that has no image left.

    Each process embeds its own images. Their latents are no parameters of the module, so that Lightning
    neither moves, nor saves, nor averages them; a checkpoint holds those of all processes, half-done ones
    included, with moments and records.

    Args:
        generator: The style-based generator that draws, trained already.
        stages: What moves, how long and how fast, by name and in order; None leaves a stage out.
        loss: Objective and weights.
        start: Where to begin.
        seed: Of all random numbers, together with an image's name: neither the chunk nor the process matters.

    Attributes:
        search: The state of the chunk at hand.
        fingerprint: That of the generator, once the trainer has set up.
    """

    directions: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        generator: nn.Module,
        stages: Mapping[str, Stage | None],
        loss: InversionLoss,
        start: Start,
        seed: int = 0,
    ) -> None:
        check_loss(loss, InversionLoss, "inversion")
        if not isinstance(generator, StyleGenerator):
            raise UserError(REFUSAL)
        super().__init__(
            optimizer=partial(torch.optim.Adam, lr=0.0), scheduler=None, weights={}, test_mode="eval"
        )
        self.generator = generator
        self.perceptual = loss.perceptual  # a submodule, which goes where the generator goes
        self.identity = loss.identity
        self.search = Search(generator, stages, loss, start, seed)
        for player in self.search.optimizers:
            self.add_player(player, [])  # latents, maps and weights that the search takes in and out
        self.chunk = -1
        self.fingerprint = ""
        self._state: dict[str, Any] | None = None  # of the chunk that a checkpoint was taken in
        self._resumed: dict[str, Any] | None = None
        # DistributedDataParallel refuses a module without a parameter to average, so it is given one that
        # nothing depends on. It ignores everything else: else it would compare the generators of all
        # processes at the start and send their buffers around in every batch.
        self.idle = nn.Parameter(torch.zeros([]))
        named = [*self.named_parameters(), *self.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in named if name != "idle"]

    def steps_per_chunk(self, size: int) -> int:
        """Return how many batches the epoch of a chunk of ``size`` images needs."""
        return self.search.steps_per_batch(size)

    @property
    def finished(self) -> bool:
        """Whether this epoch's images are through."""
        return self.search.done and self.chunk == self.current_epoch

    def embedding(self) -> Embedding:
        """Return what was found for the chunk, or, before it is ``finished``, the best so far."""
        return self.search.embedding()

    # ------------------------------------------------------------------------------------------------ running

    def setup(self, stage: str) -> None:
        """Refuse what cannot work, before anything is searched."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not getattr(data, "one_sided", True):
            raise UserError(REFUSAL)
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "precision=fp16: images searched for together would share one loss scale; take bf16 or fp32"
            )
        if self.search.start.kind == "previous":
            size = getattr(data, "batch_size", 1)
            if size != 1 or self.trainer.world_size != 1:
                raise UserError(
                    f"method.start.kind=previous with data.batch_size={size} on {self.trainer.world_size} "
                    "devices: each image begins where the one before it ended; take one image and one device"
                )
        self._refuse_short_runs()
        self.fingerprint = self.generator.fingerprint()
        given, files = self.search.start.kind == "given", getattr(data, "starts", None)
        if given and not files:
            raise UserError(
                "method.start.kind=given: data.start is missing; give a folder of latent files, such as "
                "another run's latents/"
            )
        if files and not given:
            raise UserError(
                f"data.start with method.start.kind={self.search.start.kind}: add method.start.kind=given"
            )
        for file in files or ():
            self._first(file)
        # The networks are in evaluation mode on purpose.
        warnings.filterwarnings("ignore", message="Found .* in eval mode")

    def _refuse_short_runs(self) -> None:
        """Raise ``UserError`` if the trainer would end an epoch, and so a search, before its last step."""
        trainer = self.trainer
        limit = trainer.limit_train_batches
        for slip, is_given in (
            (f"max_steps={trainer.max_steps}", trainer.max_steps != -1),
            # One batch is 1, and all of them 1.0.
            (f"limit_train_batches={limit}", isinstance(limit, int) or limit != 1.0),
        ):
            if is_given:
                raise UserError(
                    f"trainer.{slip}: would end a search before its last step; how many it takes is said by "
                    "the preset's stages: method.stages.<name>.steps"
                )

    def configure_optimizers(self) -> Any:
        """Return the search's optimisers, one per player: it sets rates and moments stage by stage."""
        return list(self.search.optimizers.values())

    def on_train_start(self) -> None:
        """Take up what a checkpoint left, and say what is going to happen."""
        self._waiting = []
        self.chunk, self._state = -1, None
        if self._resumed is not None:
            ranks = self._resumed["ranks"]
            if not getattr(getattr(self.trainer, "datamodule", None), "goes_on", True):
                # The chunk has other images or other shares now: its epoch begins anew.
                self.trainer.fit_loop.restarting = False
            elif self.trainer.global_rank < len(ranks):
                self._state = ranks[self.trainer.global_rank]
                self.chunk = self._state["chunk"]
            self._resumed = None
        stages = ", ".join(f"{name} {stage.steps} steps" for name, stage in self.search.stages.items())
        self.print(f"{stages}; seed {self.search.seed}")
        for note in self.search.notes:  # a substitute has been named when it was built
            self.print(note)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take a step; a process without images counts the batch and waits for the others."""
        if len(batch["real"]) > 0:
            super().training_step(batch, batch_idx)
            return
        self.chunk, self.step_terms = self.current_epoch, {}
        self.search.begin(targets_of(batch))
        self.batches_seen += 1

    def step(self, batch: Any) -> Iterator[None]:
        """Take one step of the stage at hand with all images of the chunk that still move."""
        search = self.search
        if self.chunk != self.current_epoch:
            self._begin(batch)
        elif search.targets is None:
            search.attach(targets_of(batch))
            assert self._state is not None
            search.load_state_dict(self._state["search"])
            self._state = None
        elif list(batch["name"]) != search.targets.names:
            raise UserError(REFUSAL)  # data for training, which is never the same twice
        if search.done:
            return
        player, number = search.stage.player, len(search.present)
        self.weights[player] = search.weights
        search.prepare()
        with self._own_gradients(), self.phase(player) as minimize:
            terms = search.terms()
            search.note(terms)
            # A sum, so that the gradient of one image is the same in every chunk.
            minimize({name: value.sum() for name, value in terms.items()})
        search.advance()
        self.step_terms = {name: value / number for name, value in self.step_terms.items()}
        yield

    def _begin(self, batch: Any) -> None:
        """Begin with the chunk of this epoch."""
        latent, noise = None, None
        if self.search.start.kind == "given":
            firsts = [self._first(file) for file in batch["start"]]
            latent = torch.stack([first.w_plus for first in firsts])
            if any(first.noise is not None for first in firsts):
                stored = [map_.cpu() for map_ in self.generator.noise_maps()]
                noise = [torch.cat(maps) for maps in zip(*(f.noise or stored for f in firsts), strict=True)]
        if self.search.start.kind == "previous":
            latent = self._previous()
        self.chunk = self.current_epoch
        self.search.begin(targets_of(batch), latent, noise)
        self._state = None

    def _first(self, file: str | Path) -> Latent:
        """Return the latent in a file, to begin with.

        Raises:
            UserError: If it is of another generator, has weights of its own, or the first stage moves another
                kind.
        """
        latent = load_latent(file)
        if latent.tuned is not None:
            raise UserError(f"{file}: has weights that were tuned for it, with which no search begins")
        latent.name = str(file)
        check_belongs(latent, self.generator, self.fingerprint)
        try:
            in_space(latent.w_plus[None], self.generator, self.search.first_space, 1)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        return latent

    def _previous(self) -> Tensor | None:
        """Return the latent that the image before ended with; None if there is none, or it is NaN."""
        kept: Tensor | None = None
        if self.search.targets is not None and len(self.search.targets) > 0:
            kept = self.search.kept_latent
        elif self._state is not None and "tensors" in self._state["search"]:
            kept = self._state["search"]["tensors"]["kept_latent"]
        return kept if kept is not None and bool(kept.isfinite().all()) else None

    def _own_gradients(self) -> AbstractContextManager[None]:
        """Keep gradients to this process: others have other images, or none, and take other steps."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _log_step_terms(self) -> None:
        """Log the terms per image of the first process: the others may be in another stage, or through."""
        if not self.step_terms:
            return
        names = list(self.step_terms)
        values = torch.stack([self.step_terms[name].float() for name in names]).tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        player = names[0].split("/")[0]
        rates = [group["lr"] for group in self.player_optimizer(player).param_groups]
        if player == "joint":
            metrics[f"train/{player}/noise_learning_rate"] = max(rates[1:])
            rates = rates[:1]
        metrics[f"train/{player}/learning_rate"] = max(rates)  # maps may have rates of their own
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.batches_seen)

    def preview(self, batch: Any) -> dict[str, Tensor]:
        """Return target | output of the chunk at hand, whatever ``batch`` is, float (N, C, H, W)."""
        search = self.search
        if search.targets is None or len(search.targets) == 0:
            return {"target": batch["real"], "output": batch["real"]}
        latent, noise = search.now()
        index = torch.arange(len(search.targets), device=search.device)
        maps = noise if search.own_noise else None
        with torch.no_grad():
            output = render(self.generator, search.w_plus(latent, index), maps, search.weights_now())
        return {"target": search.targets.real, "output": output}

    # -------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put in how far the images of every process are, instead of networks that never change."""
        super().on_save_checkpoint(checkpoint)
        state = self._state["search"] if self._state is not None else self.search.state_dict()
        checkpoint["inversion"] = {
            "fingerprint": self.fingerprint,
            "settings": self.search.settings(),
            "ranks": gather(self.trainer, {"chunk": self.chunk, "search": state}),
        }
        checkpoint["state_dict"] = {"idle": self.idle.detach().clone()}
        checkpoint["optimizer_states"] = []  # every process has its own, in its state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take out how far the images are.

        Raises:
            UserError: If they were searched for in another generator, or otherwise.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("inversion")
        if saved is None:
            raise UserError("resume: this is no checkpoint of an inversion")
        if self.fingerprint and saved["fingerprint"] != self.fingerprint:
            raise UserError(
                f"resume: the images were searched for in generator {saved['fingerprint']}, and this one is "
                f"{self.fingerprint}"
            )
        now = self.search.settings()
        for key, value in saved["settings"].items():
            if now[key] != value:
                change = _first_change(value, now[key], f"{key}.")
                raise UserError(f"resume: the search began with other settings: {change}")
        self._resumed = saved
        checkpoint["state_dict"] = self.state_dict()


def targets_of(batch: Mapping[str, Any]) -> Targets:
    """Return what a batch of the data wants."""
    return Targets(batch["real"], list(batch["name"]), batch.get("label"), batch.get("mask"))


def _first_change(before: Any, now: Any, path: str = "") -> str:
    """Return where two settings differ first, in words."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *now]:
            if key not in now or key not in before:
                return f"{path}{key} is new" if key in now else f"{path}{key} is gone"
            if before[key] != now[key]:
                return _first_change(before[key], now[key], f"{path}{key}.")
    return f"{path.rstrip('.')} was {before} and is {now}"
