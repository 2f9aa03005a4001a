"""The one base of every method: players, accumulation, clipping, schedules, averaged networks, test mode.

It knows no loss and no network. A *player* is a named group of networks with one optimiser; a method's
``step`` opens one ``phase`` per player and hands its loss terms to the phase's ``minimize``::

    with self.phase("discriminator") as minimize:
        minimize({"gan": ...})
    with self.phase("generator") as minimize:
        minimize({"gan": ..., "l1": ...})
"""

from __future__ import annotations

import copy
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

from i2i_lightning.methods.schedules import Constant, Schedule
from i2i_lightning.types import UserError

Columns = dict[str, Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
TestMode = Literal["train", "eval"]


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
        ema_decay: Decay of the averaged copies per batch, in (0, 1); None keeps no average.
        accumulate_batches: Batches whose gradients are averaged into one step of every player. Only the last
            of them is judged by a discriminator that has already stepped.
        clip_norm: Largest gradient norm of each player; None does not clip.
    """

    directions: ClassVar[Mapping[str, str]] = {"ab": "generator"}
    """The attribute, and key of the config, of the network that translates in each direction."""
    needs_pairs: ClassVar[bool] = False
    """Whether ``real_b`` must show what ``real_a`` shows."""

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
        self.automatic_optimization = False
        self.make_optimizer = optimizer
        self.make_scheduler: Schedule = scheduler if scheduler is not None else Constant()
        self.weights = {player: dict(terms) for player, terms in weights.items()}
        self.test_mode: TestMode = test_mode
        self.ema_decay = ema_decay
        self.accumulate_batches = accumulate_batches
        self.clip_norm = clip_norm
        self.players: dict[str, list[nn.Module]] = {}
        self.averages = nn.ModuleDict()
        self.config: dict[str, Any] | None = None
        """The method's resolved config as plain containers; saved with every checkpoint when given."""
        self.step_terms: dict[str, Tensor] = {}
        """Loss terms and predictions of the last batch: detached 0-d tensors under ``<player>/<term>``."""
        self.batches_seen = 0
        """Training batches since the beginning of the run, resumes included."""
        self.holds_gradients = False
        """Whether gradients are waiting for the accumulation boundary: a state that no checkpoint holds."""

    def setup(self, stage: str) -> None:
        """Refuse data that the method or its networks cannot take, before anything is trained."""
        data = getattr(self.trainer, "datamodule", None)
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
        return optimizers, [self.make_scheduler(optimizer) for optimizer in optimizers]

    def player_optimizer(self, player: str) -> LightningOptimizer:
        """Return the optimiser of ``player``."""
        optimizers = self.optimizers()
        index = list(self.players).index(player)
        return optimizers[index] if isinstance(optimizers, list) else optimizers

    @property
    def steps_now(self) -> bool:
        """Whether the optimisers step in this batch, rather than only accumulate gradients.

        The last batch of an epoch always steps, so that no gradient crosses into the next epoch.
        """
        return (self.batches_seen + 1) % self.accumulate_batches == 0 or self.trainer.is_last_batch

    @contextmanager
    def phase(self, player: str) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
        """Open the phase of ``player``: its parameters alone receive gradients until the phase ends.

        Yields:
            ``minimize(terms)``, which weights and records the 0-d loss ``terms``, backpropagates their sum
            and, at the accumulation boundary, steps the player's optimiser. Call it once in a phase.
        """
        optimizer, weights = self.player_optimizer(player), self.weights[player]
        steps = self.steps_now

        def minimize(terms: Mapping[str, Tensor]) -> None:
            total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
            self.step_terms |= {f"{player}/{name}": value.detach() for name, value in terms.items()}
            self.step_terms[f"{player}/total"] = total.detach()
            self.manual_backward(total / self.accumulate_batches if self.accumulate_batches > 1 else total)
            if steps:
                optimizer.step()
                optimizer.zero_grad()

        with optimizer.toggle_model(sync_grad=steps):
            yield minimize

    def observe(self, player: str, pred_real: Tensor, pred_fake: Tensor, threshold: float) -> None:
        """Record how well ``player`` separates real from fake: mean logits, and accuracy at ``threshold``."""
        pred_real, pred_fake = pred_real.detach(), pred_fake.detach()
        self.step_terms |= {
            f"{player}/logit_real": pred_real.mean(),
            f"{player}/logit_fake": pred_fake.mean(),
            f"{player}/accuracy_real": (pred_real > threshold).float().mean(),
            f"{player}/accuracy_fake": (pred_fake <= threshold).float().mean(),
        }

    def on_train_start(self) -> None:
        """Refuse what one gradient scaler cannot do for several fused or accumulating optimisers."""
        if self.trainer.precision != "16-mixed":
            return
        fused = any(
            getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in self.trainer.optimizers
        )
        if self.clip_norm is not None and fused:
            raise UserError(
                f"method.clip_norm={self.clip_norm} with precision=fp16 would clip scaled gradients in a "
                "fused optimiser: set optimizer.fused=false, or take precision=bf16"
            )
        if self.accumulate_batches > 1:
            raise UserError(
                f"method.accumulate_batches={self.accumulate_batches} with precision=fp16: one player's step "
                "changes the scale of the gradients that the other still holds; take precision=bf16"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip here, where a gradient scaler has already been undone."""
        if self.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def step(self, batch: Any) -> None:
        """Train every player on ``batch``, each in its phase."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Run ``step``, update the averages, log every ``log_every_n_steps`` batches, and count the batch.

        This is not left to ``on_train_batch_end``: callbacks run before the module's own hook there, and a
        checkpoint that one of them writes would miss the batch's average and count.
        """
        self.step_terms = {}
        self.step(batch)
        self.holds_gradients = not self.steps_now
        if self.averages and not self.holds_gradients:
            self._update_averages()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.batches_seen + 1) % every == 0:
            self._log_step_terms()
        self.batches_seen += 1

    @torch.no_grad()
    def _update_averages(self) -> None:
        for name, average in self.averages.items():
            network = getattr(self, name)
            assert self.ema_decay is not None
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - self.ema_decay)
            for averaged, current in zip(average.buffers(), network.buffers(), strict=True):
                averaged.copy_(current)

    def _log_step_terms(self) -> None:
        # Straight to the loggers: Lightning's own path costs up to a millisecond for this many terms in every
        # batch, logged or not. One transfer from the device fetches all of them.
        names = list(self.step_terms)
        values = torch.stack([self.step_terms[name].float() for name in names]).tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        for player in self.players:
            metrics[f"train/{player}/learning_rate"] = self.player_optimizer(player).param_groups[0]["lr"]
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

    @contextmanager
    def testing(self, name: str, seed: int = 0) -> Iterator[nn.Module]:
        """Lend the network ``self.<name>``, or its average if one is kept, for use outside training.

        It runs without gradients, in ``test_mode``, under random numbers of its own that start from ``seed``;
        neither the global random state nor any running statistic changes.
        """
        network = self.averages[name] if name in self.averages else getattr(self, name)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices), _test_mode(network, self.test_mode):
            torch.manual_seed(seed)
            yield network

    def preview(self, batch: Any) -> Columns | dict[str, Columns]:
        """Return named columns of a picture of ``batch``, float (N, C, H, W), in the order to show.

        There are ``input``, ``output`` and what these are to be compared with: ``target``, in the output's
        domain, or ``cycle``, in the input's. A method of several directions returns the columns of each, by
        its name in ``directions``.
        """
        raise NotImplementedError

    # -------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the config, the batch count, and what one needs to know to translate, as plain containers."""
        checkpoint["method_config"] = self.config
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["translation"] = self._translation()

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
        """Take the batch count back; the config is the run's own."""
        self.batches_seen = int(checkpoint.get("batches_seen", 0))


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
