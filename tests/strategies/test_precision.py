"""Number formats: what they compute in, and a gradient scaler that several players share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor

from i2i_lightning.losses.regularizers import gradient_penalty
from i2i_lightning.methods.base import Method
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.strategies.precision import Float16, Float32, bf16, fp16, fp32, fp64, tf32
from i2i_lightning.types import UserError
from tests.methods.runs import ADAM, Log, batches, cyclegan, distance, fit, images, norm_of, pix2pix, run

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:Detected call of `lr_scheduler.step"
)

HUGE = 2.0**40
"""A scale at which every gradient overflows."""


class SkipsAsTold(Float32):
    """float32 that leaves out the steps that another run left out."""

    def __init__(self, taken: list[bool]) -> None:
        super().__init__(tensor_float=False)
        self.taken = iter(taken)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        closure()
        self._after_closure(model, optimizer)
        taken = next(self.taken)
        if taken:
            optimizer.step(**kwargs)
        return taken


class Watched(Float16):
    """float16 that remembers which steps it took, and at which scale."""

    def __init__(self, init_scale: float = 65536.0, growth_interval: int = 2000) -> None:
        super().__init__(init_scale, growth_interval)
        self.taken: list[bool] = []
        self.scales: list[float] = []

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        self.scales.append(self.scaler.get_scale())
        self.taken.append(super().optimizer_step(optimizer, model, closure, **kwargs))
        return self.taken[-1]


class Scaled(Watched):
    """float32 under the scaler of float16: every power of two is exact, so it must equal float32."""

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


class Formats(L.Callback):
    """Note the formats of a convolution's output, of the losses, of the weights and of the images."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, torch.dtype]] = set()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        first = next(m for m in pl_module.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_hook(self.note)

    def note(self, module: Any, args: Any, output: Tensor) -> None:
        self.seen |= {("output", output.dtype), ("weight", module.weight.dtype)}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.seen |= {("image", batch["real_a"].dtype)}
        totals = {value.dtype for name, value in pl_module.step_terms.items() if name.endswith("total")}
        self.seen |= {("total", dtype) for dtype in totals}


@pytest.mark.parametrize("build", [pix2pix, cyclegan])
@pytest.mark.parametrize(
    ("precision", "output", "rest", "lightning"),
    [
        (fp32, torch.float32, torch.float32, "32-true"),
        (tf32, torch.float32, torch.float32, "32-true"),
        (bf16, torch.bfloat16, torch.float32, "bf16-mixed"),
        (fp16, torch.float16, torch.float32, "16-mixed"),
        (fp64, torch.float64, torch.float64, "64-true"),
    ],
)
def test_every_format_trains_every_method_on_a_cpu(
    build: Callable[[], Method],
    precision: Callable[[], Precision],
    output: torch.dtype,
    rest: torch.dtype,
    lightning: str,
) -> None:
    formats = Formats()
    method = build()
    trainer = fit(method, batches(images(2), [1, 1]), precision(), callbacks=[formats])
    assert trainer.precision == lightning
    assert formats.seen == {("image", rest), ("output", output), ("weight", rest), ("total", rest)}
    assert all(bool(torch.isfinite(value)) for value in method.step_terms.values())


def test_tensor_float_is_switched_for_the_run_and_back() -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    assert before[1]  # cuDNN's default, which is not 32 bits

    class Look(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append([switch.allow_tf32 for switch in switches])

    for precision, expected in ((fp32, False), (tf32, True)):
        seen: list[list[bool]] = []
        fit(pix2pix(), batches(images(1), [1]), precision(), callbacks=[Look()])
        assert seen == [[expected, expected]]
        assert [switch.allow_tf32 for switch in switches] == before


@pytest.mark.parametrize("build", [pix2pix, cyclegan])
def test_a_scaler_changes_nothing_but_the_steps_it_leaves_out(build: Callable[..., Method]) -> None:
    """Four batches a step, clipping, averages, and a first scale at which float32 overflows too."""
    data = batches(images(4), [1] * 4) * 6
    options = {"accumulate_batches": 4, "clip_norm": 0.5, "ema_decay": 0.5}
    precision = Scaled(init_scale=2.0**127, growth_interval=2)
    scaled = run(build(**options), data, precision)
    assert not all(precision.taken[:2])
    assert precision.taken.count(True) >= 4
    full = run(build(**options), data, SkipsAsTold(precision.taken))
    for name, value in full.state.items():
        torch.testing.assert_close(scaled.state[name], value, rtol=1e-6, atol=1e-9)
    for one, two, taken in zip(scaled.gradients, full.gradients, precision.taken, strict=True):
        if taken:
            assert distance(one, two) < 1e-6


@pytest.mark.parametrize("build", [pix2pix, cyclegan])
def test_overflowing_steps_are_left_out_and_the_rest_is_float32s(build: Callable[..., Method]) -> None:
    """From a scale that overflows, halved after every batch, until both players step; then as float32."""
    data = batches(images(4), [1] * 4) * 8
    options = {"accumulate_batches": 4, "clip_norm": 0.5, "ema_decay": 0.5}
    precision = Watched(init_scale=2.0**20)
    half = run(build(**options), data, precision)
    skipped = precision.taken.count(False)
    assert precision.skipped_steps == skipped
    assert not any(precision.taken[:2])  # both players, at first
    assert all(precision.taken[-6:])  # both, in the last three steps at least
    # One scale for both players of a step, and half of it after a step that one of them left out.
    for step in range(8):
        assert precision.scales[2 * step] == precision.scales[2 * step + 1]
    full = run(build(**options), data, SkipsAsTold(precision.taken))
    # What eleven bits leave: a few per cent, and in the gradient of |x|, which jumps, more.
    start = build(**options).state_dict()
    moved = [[state[name] - start[name] for name in start] for state in (half.state, full.state)]
    assert norm_of(moved[1]) > 0
    assert distance(*moved) < 0.1
    for one, two, taken in zip(half.gradients, full.gradients, precision.taken, strict=True):
        if taken:
            assert distance(one, two) < 0.25


class TwoSteps(Pix2Pix):
    """The generator steps twice in a batch, as for a lazy regulariser; the factors are of its losses."""

    factors = (1.0, 1.0)

    def step(self, batch: Any) -> Iterator[None]:
        for factor in self.factors:
            with self.phase("generator") as minimize:
                output = self.generator(batch["real_a"])
                minimize({"l1": factor * (output - batch["real_b"]).abs().mean()})
            yield


@pytest.mark.parametrize("overflows", [None, 0, 1])
def test_a_player_steps_twice_in_a_batch(overflows: int | None) -> None:
    """At one scale, which is halved once if either step overflowed; the other step is float32's."""
    data, precision, records = batches(images(4), [1] * 4), Scaled(growth_interval=3), []
    for choice in (precision, None):
        method = pix2pix(clip_norm=0.5)
        method.__class__ = TwoSteps
        factors = [1e36 if step == overflows else 1.0 for step in range(2)]
        method.factors = tuple(factors)  # type: ignore[assignment]
        records.append(run(method, data, choice or SkipsAsTold(precision.taken)))
    taken = [step != overflows for step in range(2)]
    assert precision.taken == taken * 4
    scales = (
        [65536.0 / 2**batch for batch in range(4)] if overflows is not None else [65536.0] * 3 + [131072.0]
    )
    assert precision.scales == [scale for scale in scales for _ in range(2)]
    scaled, full = records
    for name, value in full.state.items():
        torch.testing.assert_close(scaled.state[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_sees_unscaled_gradients(fused: bool) -> None:
    """The norm before clipping is float32's, and after it the one asked for, in fused optimisers too."""
    norms: list[tuple[float, float]] = []

    def spied(parameters: Any, limit: float) -> Tensor:
        before: Tensor = clip(parameters, limit)
        norms.append((float(before), norm_of([p.grad for p in parameters])))
        return before

    clip = torch.nn.utils.clip_grad_norm_
    data, optimizer = batches(images(2), [2]), partial(ADAM, fused=fused)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spied)
        for precision in (fp16(), fp32()):
            run(pix2pix(optimizer=optimizer, clip_norm=0.01), data, precision)
    half, full = norms[:2], norms[2:]
    for (before, after), (expected, _) in zip(half, full, strict=True):
        assert before == pytest.approx(expected, rel=0.02)
        assert before > 0.01
        assert after == pytest.approx(0.01, rel=1e-4)


def test_fused_optimisers_step_and_skip_as_others_do() -> None:
    data = batches(images(1), [1]) * 6
    states, taken = [], []
    for fused in (False, True):
        precision = Watched(init_scale=2.0**19)
        optimizer = partial(ADAM, fused=fused)
        states.append(run(pix2pix(optimizer=optimizer, clip_norm=0.5), data, precision).state)
        taken.append(precision.taken)
    assert taken[0] == taken[1]
    assert False in taken[0]
    assert True in taken[0]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-5)


def test_the_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    """Overflows before, growth after: a run resumed in between ends bit-equal."""
    data = batches(images(6), [1] * 6)

    def train(epochs: int, resume: Path | None = None) -> tuple[Float16, L.Trainer]:
        precision = Float16(2.0**20, growth_interval=5)
        method = pix2pix(optimizer=ADAM, ema_decay=0.9)
        return precision, fit(method, data, precision, max_epochs=epochs, resume=resume)

    whole, whole_trainer = train(4)
    _, part = train(2)
    part.save_checkpoint(tmp_path / "part.ckpt")
    resumed, resumed_trainer = train(4, tmp_path / "part.ckpt")
    assert whole.state_dict() == resumed.state_dict()
    assert whole.skipped_steps > 0
    assert whole.scaler.get_scale() != 2.0**20
    theirs = resumed_trainer.lightning_module.state_dict()
    for name, value in whole_trainer.lightning_module.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_the_scale_and_the_skipped_steps_are_logged() -> None:
    log = Log()
    fit(pix2pix(), batches(images(1), [1]) * 2, fp16(init_scale=HUGE), logger=log, log_every_n_steps=1)
    # A batch is logged while it is trained: at its own scale, with the steps left out so far.
    assert [row["train/scale"] for row in log.rows] == [HUGE, HUGE / 2]
    assert [row["train/skipped_steps"] for row in log.rows] == [2, 4]


@pytest.mark.parametrize(("precision", "tolerance"), [(bf16, 0.2), (partial(fp16, init_scale=1024.0), 0.03)])
def test_penalties_are_right_under_autocast_and_a_scaler(
    precision: Callable[[], Precision], tolerance: float
) -> None:
    loss = Pix2PixLoss(gan_mode="wgangp", lambda_l1=10.0)
    data = batches(images(2), [2])
    records = []
    for choice in (precision(), fp32()):
        torch.manual_seed(3)
        method = pix2pix(loss=loss)
        torch.manual_seed(4)
        records.append(run(method, data, choice))
    mixed, full = (record.terms[0]["discriminator/gp"] for record in records)
    # The generator's images, and the other term, are half precision's; the penalty's arithmetic is not.
    assert mixed == pytest.approx(full, rel=tolerance)
    assert distance(records[0].gradients[0], records[1].gradients[0]) < tolerance


def test_a_penalty_is_the_same_inside_autocast() -> None:
    torch.manual_seed(0)
    judge, alpha = PatchGAN(3, 4, 2, norm="instance"), torch.rand(2)
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    plain = gradient_penalty(judge, real, fake, alpha=alpha)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(gradient_penalty(judge, real, fake, alpha=alpha), plain)


@pytest.mark.parametrize("options", [{"init_scale": 0.0}, {"growth_interval": 0}])
def test_impossible_scales_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"precision\.init_scale"):
        fp16(**options)
