"""The one base of every method: players, accumulation, clipping, schedules, averaged networks, test mode.

It knows no loss and no network. A *player* is a named group of networks with one optimiser; a method's
``step`` opens one ``phase`` per player, hands its loss terms to the phase's ``minimize``, and yields between
two phases::

    with self.phase("discriminator") as minimize:
        minimize({"gan": ...})
    yield  # accumulated batches wait for each other
    with self.phase("generator") as minimize:
        minimize({"gan": ..., "l1": ...})

All of them pass the discriminator's phase, it steps, and then all of them pass the generator's, as the images
of one large batch would.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from i2i_lightning.methods.ranks import gather, leave_at_exit
from i2i_lightning.methods.schedules import Constant, Schedule
from i2i_lightning.types import UserError

Columns = dict[str, Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
TestMode = Literal["train", "eval"]
RateScaling = Literal["none", "linear", "sqrt"]


_ENDED = object()


class Method(LightningModule):
    """Base of all methods: manual optimisation with one optimiser per player.

    Subclasses register their networks as attributes, declare their players, and write ``step`` (the paper's
    algorithm for one batch), ``validation_step`` and ``preview``.

    Args:
        optimizer: Builds an optimiser from parameters; called once per player.
        scheduler: Builds a scheduler from an optimiser; None keeps the rate constant.
        weights: Weight of each loss term, by player and term. ``minimize`` applies it, and nothing else does.
        test_mode: How networks run outside training. ``train`` keeps dropout on and normalises by the
            statistics of the test batch (Isola et al. 2017, section 3.3); ``eval`` uses running statistics
            without dropout.
        ema_decay: Decay of the averaged copies per step, in (0, 1); None keeps no average.
        accumulate_batches: Batches that take one step together, as if they were one; an epoch's last step
            takes what is left. Only norms over the batch see each of them alone.
        clip_norm: Largest gradient norm of each player; None does not clip.
        rate_scaling: What the rate of every player is multiplied by, with n devices times accumulated
            batches: ``none`` 1, ``linear`` n (Goyal et al. 2017, section 2.1), ``sqrt`` the root of n
            (Krizhevsky 2014, section 5; usual with Adam).
    """

    directions: ClassVar[Mapping[str, str]] = {"ab": "generator"}
    """The attribute, and key of the config, of the network that translates in each direction."""
    needs_pairs: ClassVar[bool] = False
    """Whether ``real_b`` must show what ``real_a`` shows."""
    needs_images: ClassVar[bool] = False
    """Whether batches must be of one set of images, for a method that has no inputs."""

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: Schedule | None,
        weights: Mapping[str, Mapping[str, float]],
        test_mode: TestMode = "train",
        ema_decay: float | None = None,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        rate_scaling: RateScaling = "none",
    ) -> None:
        super().__init__()
        if test_mode not in ("train", "eval"):
            raise UserError(f"method.test_mode={test_mode}: give train or eval")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError(
                f"method.ema_decay={ema_decay}: give a number between 0 and 1, or null for no average"
            )
        if accumulate_batches < 1:
            raise UserError(f"method.accumulate_batches={accumulate_batches}: give at least 1")
        if clip_norm is not None and clip_norm <= 0:
            raise UserError(f"method.clip_norm={clip_norm}: give a positive norm, or null for no clipping")
        if rate_scaling not in ("none", "linear", "sqrt"):
            raise UserError(f"method.rate_scaling={rate_scaling}: give none, linear or sqrt")
        self.automatic_optimization = False
        self.make_optimizer = optimizer
        self.make_scheduler: Schedule = scheduler if scheduler is not None else Constant()
        self.weights = {player: dict(terms) for player, terms in weights.items()}
        self.test_mode: TestMode = test_mode
        self.ema_decay = ema_decay
        self.accumulate_batches = accumulate_batches
        self.clip_norm = clip_norm
        self.rate_scaling: RateScaling = rate_scaling
        self.players: dict[str, list[nn.Module]] = {}
        self.averages = nn.ModuleDict()
        self.config: dict[str, Any] | None = None
        """The method's resolved config as plain containers; saved with every checkpoint when given."""
        self.step_terms: dict[str, Tensor] = {}
        """Loss terms and predictions of the last batch, means over the accumulated ones: detached 0-d tensors
        under ``<player>/<term>``; empty after a batch that waits for others."""
        self.batches_seen = 0
        """Training batches since the beginning of the run, resumes included."""
        self.images_seen = 0
        """Training images of all processes that steps were taken on, resumes included."""
        self.step_images = 0
        """Images of all processes in the step that is under way."""
        self._unlogged: dict[str, Tensor] = {}  # each term as it last was, since the loggers took them
        self._waiting: list[Any] = []
        self._share = 1.0  # of the images of a step, those in the batch whose phase is open
        self._completes = True  # whether that batch is the last of its step
        self._skipped: set[str] = set()  # players whose gradients overflowed in this step

    def setup(self, stage: str) -> None:
        """Refuse data that the method or its networks cannot take, before anything is trained."""
        leave_at_exit(os.getpid())
        self._unlogged = {}  # of an earlier fit; a checkpoint is loaded later
        data = getattr(self.trainer, "datamodule", None)
        one_sided = getattr(data, "one_sided", self.needs_images)
        if self.directions and one_sided:
            raise UserError(
                f"data: {type(self).__name__} translates one side of the data into the other, and here is "
                "but one: take data=paired or data=unpaired, or method=stylegan2"
            )
        if self.needs_images and not one_sided:
            raise UserError(
                f"data: {type(self).__name__} makes images from noise and learns from one set of them: take "
                "data=images or data=toyfaces_images"
            )
        if self.needs_pairs and not getattr(data, "aligned", True):
            raise UserError(
                f"data: {type(self).__name__} learns from aligned pairs, and here partners are drawn at "
                "random: take data=paired, or method=cyclegan"
            )
        for size in getattr(data, "sizes_px", None) or []:
            for network in (network for networks in self.players.values() for network in networks):
                check = getattr(network, "check_size", None)
                if check is not None:
                    check(*size)

    # ------------------------------------------------------------------------------------------------ players

    def add_player(self, name: str, networks: Sequence[nn.Module]) -> None:
        """Declare a player: its ``networks`` are trained by one optimiser, in the phases of that ``name``."""
        self.players[name] = list(networks)

    def keep_average(self, name: str) -> None:
        """Keep an exponential moving average of the network ``self.<name>`` if ``ema_decay`` is given."""
        if self.ema_decay is not None:
            self.averages[name] = copy.deepcopy(getattr(self, name)).requires_grad_(False)

    def configure_optimizers(self) -> Any:
        """Build one optimiser and one scheduler per player, in the order the players were declared."""
        optimizers = [
            self.make_optimizer([p for network in networks for p in network.parameters() if p.requires_grad])
            for networks in self.players.values()
        ]
        for player, optimizer in zip(self.players, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] *= self.rate_factor
            self.prepare_optimizer(player, optimizer)
        return optimizers, [self.make_scheduler(optimizer) for optimizer in optimizers]

    def prepare_optimizer(self, player: str, optimizer: Optimizer) -> None:
        """Adjust the new optimiser of a player, before a schedule takes its rate for the base."""

    @property
    def rate_factor(self) -> float:
        """What ``rate_scaling`` multiplies the configured rates by."""
        if self.rate_scaling == "none":
            return 1.0
        batches = self.trainer.world_size * self.accumulate_batches
        return float(batches) if self.rate_scaling == "linear" else math.sqrt(batches)

    def player_optimizer(self, player: str) -> LightningOptimizer:
        """Return the optimiser of ``player``."""
        optimizers = self.optimizers()
        index = list(self.players).index(player)
        return optimizers[index] if isinstance(optimizers, list) else optimizers

    @property
    def holds_batches(self) -> bool:
        """Whether batches are waiting for others to take a step with: a state that no checkpoint holds."""
        return bool(self._waiting)

    @property
    def accumulates(self) -> bool:
        """Whether the step that is under way has more batches than one."""
        return self._share < 1

    @property
    def completes(self) -> bool:
        """Whether the batch whose phase is open is the last of its step."""
        return self._completes

    @contextmanager
    def phase(self, player: str) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
        """Open the phase of ``player``: its parameters alone receive gradients until the phase ends.

        Yields:
            ``minimize(terms)``, which weights and records the 0-d loss ``terms``, backpropagates their sum
            and, for the last of the accumulated batches, steps the player's optimiser. Call it once in a
            phase.
        """
        optimizer, weights = self.player_optimizer(player), self.weights[player]

        def minimize(terms: Mapping[str, Tensor]) -> None:
            total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
            self._record({f"{player}/{name}": value for name, value in terms.items()})
            self._record({f"{player}/total": total})
            self.manual_backward(total * self._share if self.accumulates else total)
            if self._completes:
                # A gradient scaler that finds an overflow leaves the step out, and says so.
                if optimizer.step() is False:
                    self._skipped.add(player)
                optimizer.zero_grad()

        with optimizer.toggle_model(sync_grad=self._completes):
            yield minimize

    def observe(self, player: str, pred_real: Tensor, pred_fake: Tensor, threshold: float) -> None:
        """Record how well ``player`` separates real from fake: mean logits, and accuracy at ``threshold``."""
        pred_real, pred_fake = pred_real.detach(), pred_fake.detach()
        self._record(
            {
                f"{player}/logit_real": pred_real.mean(),
                f"{player}/logit_fake": pred_fake.mean(),
                f"{player}/accuracy_real": (pred_real > threshold).float().mean(),
                f"{player}/accuracy_fake": (pred_fake <= threshold).float().mean(),
            }
        )

    def _record(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            mine = value.detach() * self._share if self.accumulates else value.detach()
            self.step_terms[name] = self.step_terms[name] + mine if name in self.step_terms else mine

    def on_train_start(self) -> None:
        """Begin without batches of an earlier fit, and say how many images a step has, and its rate."""
        self._waiting = []
        per_device = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if per_device is None:
            return
        devices, accumulated = self.trainer.world_size, self.accumulate_batches
        rates = {optimizer.param_groups[0]["lr"]: None for optimizer in self.trainer.optimizers}
        images = per_device * devices * accumulated
        self.print(
            f"{images} image{'s' if images > 1 else ''} per step: {per_device} per device, {devices} "
            f"device{'s' if devices > 1 else ''}, {accumulated} accumulated; learning rate "
            + ", ".join(f"{rate:.3g}" for rate in rates)
            + (f" ({self.rate_scaling} scaling)" if self.rate_scaling != "none" else "")
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip here, where a gradient scaler has already been undone."""
        if self.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def step(self, batch: Any) -> Iterator[None]:
        """Train every player on ``batch``, each in its phase, and yield between two phases."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Run ``step``, update the averages, log every ``log_every_n_steps`` batches, and count the batch.

        A batch that waits for others does nothing else. The last batch of an epoch never waits, so that none
        crosses into the next.

        Terms are logged as the step has them. One that a step leaves out, as a lazy regulariser does, is
        logged as it was when it last came, if it came since the last time. ``total`` is that of the logged
        step alone: a term that comes from an earlier one is not in it.

        This is not left to ``on_train_batch_end``: callbacks run before the module's own hook there, and a
        checkpoint that one of them writes would miss the batch's average and count.
        """
        self.step_terms = {}
        self._waiting.append(batch)
        if len(self._waiting) == self.accumulate_batches or self.trainer.is_last_batch:
            batches, self._waiting = self._waiting, []
            self._step_together(batches)
            if self.averages:
                self._update_averages()
            self._unlogged |= self.step_terms
            every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and (self.batches_seen + 1) % every < len(batches):  # one of them is to be logged
                self._log_step_terms()
                self._unlogged = {}
        self.batches_seen += 1

    def _step_together(self, batches: Sequence[Any]) -> None:
        """Take one step on ``batches``: each passes a phase, the last one ends it, and the next phase begins.

        A batch's loss is a mean over its images, so it counts by its share of all images.
        """
        sizes = [_number_of_images(batch) for batch in batches]
        self.step_images = sum(sizes) * self.trainer.world_size
        steps = [self.step(batch) for batch in batches]
        self._skipped.clear()
        ended = False
        while not ended:
            for index, step in enumerate(steps):
                self._share, self._completes = sizes[index] / sum(sizes), index == len(steps) - 1
                ended = next(step, _ENDED) is _ENDED
        self.images_seen += self.step_images

    def average_decay(self) -> float:
        """Return the decay of the averaged networks for the step that was just taken."""
        assert self.ema_decay is not None
        return self.ema_decay

    @torch.no_grad()
    def _update_averages(self) -> None:
        share = 1.0 - self.average_decay()
        for name, average in self.averages.items():
            network = getattr(self, name)
            if any(network in self.players[player] for player in self._skipped):
                continue  # an average is over the steps that were taken
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)
            for averaged, current in zip(average.buffers(), network.buffers(), strict=True):
                averaged.copy_(current)

    def _lazy_terms(self) -> dict[str, Tensor]:
        """Return the terms that came since the loggers took them, but not in the last step."""
        return {name: value for name, value in self._unlogged.items() if name not in self.step_terms}

    def _log_step_terms(self) -> None:
        # Straight to the loggers: Lightning's own path costs up to a millisecond for this many terms in every
        # batch, logged or not. One transfer from the device fetches all of them.
        terms = self.step_terms | self._lazy_terms()
        names = list(terms)
        values = torch.stack([value.float() for value in terms.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        metrics = {f"train/{name}": value for name, value in zip(names, values.tolist(), strict=True)}
        for player in self.players:
            metrics[f"train/{player}/learning_rate"] = self.player_optimizer(player).param_groups[0]["lr"]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            metrics["train/scale"] = scaler.get_scale()
            metrics["train/skipped_steps"] = getattr(self.trainer.precision_plugin, "skipped_steps", 0)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.batches_seen)

    def on_train_epoch_end(self) -> None:
        """Step every scheduler; Lightning never does under manual optimisation.

        A run that stops in the middle of an epoch (``trainer.max_time``) passes here too: that epoch is not
        over.
        """
        if not self.trainer.is_last_batch:
            return
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if isinstance(scheduler, ReduceLROnPlateau):
                if self.trainer.fit_loop.epoch_loop._should_check_val_epoch():
                    scheduler.step(self._monitored())
            elif scheduler is not None:
                scheduler.step()

    def _monitored(self) -> float:
        monitor = str(getattr(self.make_scheduler, "monitor", ""))
        metrics = self.trainer.callback_metrics
        if monitor not in metrics:
            there = ", ".join(sorted(metrics)) or "none"
            raise UserError(f"scheduler.monitor={monitor}: nothing logs this metric; there is: {there}")
        return float(metrics[monitor])

    # ------------------------------------------------------------------------------------------------ testing

    def on_validation_start(self) -> None:
        """Measure one network: give every process the running statistics of the first, which are saved.

        Norms over the batch of one process have statistics of their own there, and nobody shares them in
        manual optimisation.
        """
        if self.trainer.world_size > 1:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    for buffer in module.buffers():
                        torch.distributed.broadcast(buffer, 0)

    @contextmanager
    def testing(self, name: str, seed: int = 0) -> Iterator[nn.Module]:
        """Lend the network ``self.<name>``, or its average if one is kept, for use outside training.

        It runs without gradients, in ``test_mode``, under random numbers of its own that start from ``seed``;
        neither the global random state nor any running statistic changes.
        """
        network = self.averages[name] if name in self.averages else getattr(self, name)
        with torch.no_grad(), _own_random_numbers(self.device, seed), _test_mode(network, self.test_mode):
            yield network

    def test_seed(self, batch_idx: int) -> int:
        """Return the seed of a validation or test batch: its number among the batches of all processes.

        A single process numbers the same batches so, and its noise is then the same.
        """
        if self._trainer is None:  # called by hand
            return batch_idx
        return batch_idx * self.trainer.world_size + self.trainer.global_rank

    def preview(self, batch: Any) -> Columns | dict[str, Columns]:
        """Return named columns of a picture of ``batch``, float (N, C, H, W), in the order to show.

        There are ``input``, ``output`` and what these are to be compared with: ``target``, in the output's
        domain, or ``cycle``, in the input's. A method of several directions returns the columns of each, by
        its name in ``directions``. One without inputs returns ``output``, and whatever else it makes of the
        same noise, as many images as the batch has.
        """
        raise NotImplementedError

    # -------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the config, the batch count, and what one needs to know to translate, as plain containers."""
        checkpoint["method_config"] = self.config
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["images_seen"] = self.images_seen
        checkpoint["translation"] = self._translation()
        lazy = {name: float(value) for name, value in self._lazy_terms().items()}
        checkpoint["lazy_terms"] = gather(self.trainer, lazy)

    def _translation(self) -> dict[str, Any] | None:
        """Return what the generators take and give, for those who use them without this run's config."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "formats"):
            return None
        format_a, format_b = (side.to_dict() for side in data.formats())
        sides = {"ab": {"input": format_a, "output": format_b}, "ba": {"input": format_b, "output": format_a}}
        size = getattr(data, "size_px", None)
        return {
            "directions": {
                direction: {"generator": name, **sides[direction]}
                for direction, name in self.directions.items()
            },
            "test_mode": self.test_mode,
            "z_dim": int(getattr(self, "z_dim", 0)),
            "size_px": None if size is None else list(size),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counts back, and what is still to be logged; the config is the run's own."""
        self.batches_seen = int(checkpoint.get("batches_seen", 0))
        self.images_seen = int(checkpoint.get("images_seen", 0))
        ranks = checkpoint.get("lazy_terms", [{}])
        lazy = ranks[min(self.trainer.global_rank, len(ranks) - 1)]  # all processes have the same terms
        device = self.trainer.strategy.root_device
        self._unlogged = {name: torch.tensor(value, device=device) for name, value in lazy.items()}


def _number_of_images(batch: Mapping[str, Any]) -> int:
    """Return how many images, or pairs of them, a batch has."""
    return len(batch["real_a"] if "real_a" in batch else batch["real"])


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from ``seed`` within the context, and afterwards as if nothing had been drawn."""
    on_mps = device.type == "mps"  # which torch's own context does not know
    state = torch.mps.get_rng_state() if on_mps else None
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        if state is not None:
            torch.mps.set_rng_state(state)


@contextmanager
def _test_mode(network: nn.Module, mode: TestMode) -> Iterator[None]:
    """Put ``network`` into test mode, and every module of it back as it was."""
    before = [(module, module.training) for module in network.modules()]
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    network.train(mode == "train")
    if mode == "train":
        # A batch norm that does not track takes the statistics of its batch and leaves the running ones
        # alone.
        for norm in norms:
            norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, training in before:
            module.training = training
