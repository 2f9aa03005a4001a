"""StyleGAN2's step against one written out in plain PyTorch, its lazy steps, its averages, and its slips."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from i2i_lightning.loggers.csv_log import CSVLog, read_rows
from i2i_lightning.losses.adaptive_augmentation import AdaptiveAugmentation
from i2i_lightning.losses.adaptive_transforms import BLITS, GEOMETRY
from i2i_lightning.methods.pix2pix import Pix2PixLoss
from i2i_lightning.methods.stylegan2 import StyleGAN2, StyleGAN2Loss
from i2i_lightning.networks.stylegan2.discriminator import StyleGAN2Discriminator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError

ADAM = partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))
LOSS = StyleGAN2Loss(lambda_r1=1.0, r1_interval=3, path_length_interval=2)


def networks(label_dim: int = 0, channels: int = 3) -> tuple[StyleGAN2Generator, StyleGAN2Discriminator]:
    torch.manual_seed(0)
    generator = StyleGAN2Generator(
        8, channels, 6, 6, label_dim, mapping_layers=2, channel_base=64, channel_max=8
    )
    for layer in generator.synthesis.layers:
        nn.init.constant_(layer.noise_strength, 0.1)
    return generator, StyleGAN2Discriminator(
        8, channels, label_dim, channel_base=64, channel_max=8, mapping_layers=2
    )


def build(label_dim: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> StyleGAN2:
    options = {"loss": LOSS, "ema_half_life_kimg": 0.02} | options
    loss, channels = options.pop("loss"), options.pop("channels", 3)
    return StyleGAN2(*networks(label_dim, channels), loss, ADAM, **options).to(dtype)


def items(
    count: int, label_dim: int = 0, dtype: torch.dtype = torch.float32, channels: int = 3
) -> list[dict[str, Any]]:
    rng = torch.Generator().manual_seed(7)
    made = []
    for index in range(count):
        item = {"real": torch.rand(channels, 8, 8, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1}
        if label_dim:
            item["label"] = F.one_hot(torch.tensor(index % label_dim), label_dim).to(dtype)
        made.append(item)
    return made


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.terms.append({name: value.item() for name, value in pl_module.step_terms.items()})


def fit(method: StyleGAN2, data: list[dict[str, Any]], batch_size: int = 4, **options: Any) -> Recorder:
    recorder, resume = Recorder(), options.pop("resume", None)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        callbacks=[recorder, *options.pop("callbacks", [])],
        precision="64-true" if next(method.parameters()).dtype == torch.float64 else "32-true",
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(method, DataLoader(data, batch_size=batch_size), ckpt_path=resume)  # type: ignore[arg-type]
    return recorder


def lazy_adam(network: nn.Module, interval: int) -> torch.optim.Adam:
    """Adam of Karras et al. 2020, appendix B, for a regulariser in every ``interval`` steps."""
    ratio = interval / (interval + 1)
    return torch.optim.Adam(network.parameters(), 2e-3 * ratio, (0.0**ratio, 0.99**ratio))


def reference(
    generator: StyleGAN2Generator,
    discriminator: nn.Module,
    batches: list[dict[str, Tensor]],
    loss: StyleGAN2Loss,
) -> Iterator[dict[str, float]]:
    """The algorithm in a plain loop; draws: z, whether to mix, where, the second z, noise."""
    optimizer_g = lazy_adam(generator, loss.path_length_interval)
    optimizer_d = lazy_adam(discriminator, loss.r1_interval)
    target = torch.zeros([])

    def mapped(number: int, label: Tensor | None) -> Tensor:
        w = generator.mapping.to_w(torch.randn(number, 6), label)
        rows = [w] * generator.num_ws
        if torch.rand([]) < loss.style_mixing:
            first = int(torch.randint(1, generator.num_ws, []))
            second = generator.mapping.to_w(torch.randn(number, 6), label)
            rows = rows[:first] + [second] * (generator.num_ws - first)
        return torch.stack(rows, 1)

    for index, batch in enumerate(batches):
        real, label = batch["real"], batch.get("label")
        terms = {}
        w_plus = mapped(len(real), label)
        generator.mapping.w_avg.mul_(0.995).add_(0.005 * w_plus[:, 0].detach().mean(0))
        fake = generator.synthesis(w_plus, "random")
        loss_g = F.softplus(-discriminator(fake, label)).mean()
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        terms["generator/gan"] = loss_g.item()

        if index % loss.path_length_interval == 0:
            half = len(real) // 2
            w_plus = mapped(half, None if label is None else label[:half])
            images = generator.synthesis(w_plus, "random")
            noise = torch.randn_like(images) / 8
            (slope,) = torch.autograd.grad((images * noise).sum(), w_plus, create_graph=True)
            lengths = slope.square().sum(2).mean(1).sqrt()
            target = target + 0.01 * (lengths.detach().mean() - target)
            penalty = (lengths - target).square().mean()
            optimizer_g.zero_grad()
            (2 * loss.path_length_interval * penalty).backward()
            optimizer_g.step()
            terms["generator/path_length"] = penalty.item()

        with torch.no_grad():
            fake = generator.synthesis(mapped(len(real), label), "random")
        pred_fake, pred_real = discriminator(fake, label), discriminator(real, label)
        loss_d = F.softplus(pred_fake).mean() + F.softplus(-pred_real).mean()
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        terms["discriminator/total"] = loss_d.item()

        if index % loss.r1_interval == 0:
            images = real.clone().requires_grad_()
            (slope,) = torch.autograd.grad(discriminator(images, label).sum(), images, create_graph=True)
            penalty = slope.square().sum((1, 2, 3)).mean()
            optimizer_d.zero_grad()
            (loss.lambda_r1 / 2 * loss.r1_interval * penalty).backward()
            optimizer_d.step()
            terms["discriminator/r1"] = penalty.item()
        yield terms


@pytest.mark.parametrize("label_dim", [0, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_step_equals_plain_loop(label_dim: int, dtype: torch.dtype, tolerance: float) -> None:
    data = items(20, label_dim, dtype)
    method = build(label_dim, dtype)
    generator, discriminator = (copy.deepcopy(net) for net in (method.generator, method.discriminator))
    recorder = fit(method, data)
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(1)
        batches = list(DataLoader(data, batch_size=4))  # type: ignore[arg-type]
        torch.manual_seed(1)
        # A loader draws the seed of its workers before the first batch.
        torch.empty((), dtype=torch.int64).random_()
        expected = list(reference(generator, discriminator, batches, LOSS))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(recorder.terms) == 5
    for found, wanted in zip(recorder.terms, expected, strict=True):
        totals = {"discriminator/total": found["discriminator/gan"] * 2}
        for name, value in wanted.items():
            assert {**found, **totals}[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    for trained, plain in ((method.generator, generator), (method.discriminator, discriminator)):
        for (name, found), wanted in zip(
            trained.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, msg=name)


def test_lazy_steps_come_when_they_should() -> None:
    terms = fit(build(), items(24)).terms
    assert ["generator/path_length" in term for term in terms] == [True, False] * 3
    assert ["discriminator/r1" in term for term in terms] == [True, False, False] * 2
    without = build(loss=StyleGAN2Loss(lambda_r1=0, lambda_path_length=0))
    terms = fit(without, items(8)).terms
    assert not any("r1" in name or "path_length" in name for term in terms for name in term)
    assert without.trainer.optimizers[0].param_groups[0]["lr"] == 2e-3  # nothing lazy, nothing adjusted


@pytest.mark.parametrize(("accumulate", "rows_with_r1"), [(1, [9, 19, 39]), (2, [9, 39, 69])])
def test_lazy_terms_are_logged_as_they_were_in_their_turn(
    accumulate: int, rows_with_r1: list[int], tmp_path: Path
) -> None:
    """At the default intervals, 16 and 4 steps."""
    method = build(loss=StyleGAN2Loss(), accumulate_batches=accumulate)
    terms = fit(method, items(40 * accumulate), 1, logger=CSVLog(tmp_path), log_every_n_steps=10).terms
    rows = {int(row["step"]): row for row in read_rows(tmp_path / "metrics.csv")[1]}
    assert list(rows) == list(range(9, 40 * accumulate, 10))
    lazy, logged = {"discriminator/r1", "generator/path_length"}, 0
    for step, row in rows.items():
        for name in lazy:
            since = [term[name] for term in terms[logged : step + 1] if name in term]
            cell = row[f"train/{name}"]
            assert cell == (f"{since[-1]:.7g}" if since else ""), (step, name)
        for name in set(terms[step]) - lazy:
            assert float(row[f"train/{name}"]) == pytest.approx(terms[step][name], rel=1e-6, abs=1e-12)
        logged = step + 1
    assert [step for step, row in rows.items() if row["train/discriminator/r1"]] == rows_with_r1


def test_lazy_terms_are_logged_after_a_resume_too(tmp_path: Path) -> None:
    """The first batch has them, the fourth is logged, and between these the run is taken up again."""

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{pl_module.batches_seen}.ckpt")

    rows = []
    for resume in (None, tmp_path / "2.ckpt"):
        method, log = build(loss=StyleGAN2Loss()), CSVLog(tmp_path, f"{resume is None}.csv")
        fit(method, items(16), callbacks=[Keep()], resume=resume, logger=log, log_every_n_steps=4)
        (row,) = read_rows(log.path)[1]
        assert row["step"] == "3"
        rows.append({name: row[f"train/{name}"] for name in ("discriminator/r1", "generator/path_length")})
    assert rows[0] == rows[1]
    assert all(rows[0].values())


def test_accumulated_batches_are_one_large_batch() -> None:
    """Without a second z and with the same draws: the generator's step is compared on its own mean."""
    whole, parts = build(dtype=torch.float64), build(dtype=torch.float64, accumulate_batches=2)
    assert len(fit(whole, items(8, dtype=torch.float64), 8).terms) == 1
    recorder = fit(parts, items(8, dtype=torch.float64), 4)
    assert recorder.terms[0] == {}
    assert whole.images_seen == parts.images_seen == 8
    steps = [next(iter(method.trainer.optimizers[0].state.values()))["step"] for method in (whole, parts)]
    assert steps[0] == steps[1] == 2  # the loss and the path length


def test_average_has_its_half_life() -> None:
    method = build(ema_half_life_kimg=0.008, ema_ramp_up=None)
    before = copy.deepcopy(method.averages["generator"])
    fit(method, items(8), 8)
    for old, average, new in zip(
        before.parameters(),
        method.averages["generator"].parameters(),
        method.generator.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(average, (old + new) / 2)
    averaged, current = (net.mapping.w_avg for net in (method.averages["generator"], method.generator))
    assert torch.equal(averaged, current)
    assert current.abs().sum() > 0


def test_ramp_up_follows_the_images_seen() -> None:
    method = build(ema_half_life_kimg=10, ema_ramp_up=0.05)
    method.images_seen, method.step_images = 4000, 20
    assert method.average_decay() == pytest.approx(0.5 ** (20 / 200))
    method.images_seen = 10**6
    assert method.average_decay() == pytest.approx(0.5 ** (20 / 10000))


def test_adaptive_augmentation_is_driven_by_real_logits() -> None:
    adaptive = AdaptiveAugmentation(interval=1, speed_kimg=0.032)
    method = build(adaptive=adaptive)
    nn.init.constant_(method.discriminator.b4.out.bias, 10)  # takes everything for real
    fit(method, items(8), 4)
    assert float(adaptive.strength.p) == pytest.approx(8 / 32)
    assert any(name.startswith("adaptive.") for name in method.state_dict())


def test_adaptive_augmentation_changes_once_in_so_many_steps() -> None:
    adaptive = AdaptiveAugmentation(interval=2, speed_kimg=0.032)
    method = build(adaptive=adaptive, accumulate_batches=2)
    nn.init.constant_(method.discriminator.b4.out.bias, 10)  # takes everything for real
    terms = fit(method, items(14), 2).terms  # three steps of two batches, and one of what is left
    strengths = [term["discriminator/augment_p"] for term in terms if term]
    assert strengths == pytest.approx([0, 8 / 32, 8 / 32, 14 / 32])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_strength_and_overfitting_of_adaptive_augmentation_are_logged(
    accumulate: int, tmp_path: Path
) -> None:
    """Batches of three and of one image: means by their shares would be other numbers."""
    adaptive = AdaptiveAugmentation(interval=1, speed_kimg=0.032, initial=0.125)
    method = build(adaptive=adaptive, accumulate_batches=accumulate)
    nn.init.constant_(method.discriminator.b4.out.bias, 10)  # takes everything for real
    log = CSVLog(tmp_path)
    fit(method, items(4), 4 if accumulate == 1 else 3, logger=log, log_every_n_steps=accumulate)
    (row,) = read_rows(tmp_path / "metrics.csv")[1]
    assert float(row["train/discriminator/augment_p"]) == adaptive.strength.p.item() == 8 / 32
    assert float(row["train/discriminator/overfitting"]) == adaptive.strength.overfitting.item() == 1


@pytest.mark.parametrize(
    "options",
    [
        {"augment": ["color", "translation", "cutout"]},
        {"adaptive": AdaptiveAugmentation(initial=1.0, names=BLITS + GEOMETRY)},
    ],
)
def test_images_of_other_channels_are_augmented(options: dict[str, Any]) -> None:
    (terms,) = fit(build(channels=4, **options), items(4, channels=4)).terms
    assert all(math.isfinite(value) for value in terms.values())


def test_samples_repeat_and_leave_no_trace() -> None:
    method = build()
    batch = {"real": torch.zeros(4, 3, 8, 8), "name": list("abcd")}
    method.generator.mapping.w_avg.normal_()
    state = torch.random.get_rng_state()
    first, second = method.preview(batch), method.preview(batch)  # type: ignore[arg-type]
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(first) == ["truncated", "output"]
    assert torch.equal(first["output"], second["output"])
    assert not torch.equal(first["output"], first["truncated"])
    outputs = method.validation_step(batch, 0)  # type: ignore[arg-type]
    assert outputs["fake_b"].shape == outputs["real_b"].shape
    assert not torch.equal(outputs["fake_b"], method.validation_step(batch, 1)["fake_b"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_half_life_kimg": 0}, "method.ema_half_life_kimg=0"),
        ({"ema_half_life_kimg": math.nan}, "method.ema_half_life_kimg=nan"),
        ({"ema_ramp_up": -0.1}, "method.ema_ramp_up=-0.1: give 0 or more, or null"),
        ({"w_avg_decay": 1.5}, "method.w_avg_decay=1.5: give a number from 0 to 1"),
        ({"w_avg_decay": -0.5}, "method.w_avg_decay=-0.5"),
        ({"loss": Pix2PixLoss()}, "^loss: this method takes loss=stylegan2, not a Pix2PixLoss$"),
        ({"augment": ["colour"]}, "method.augment: no augmentation colour"),
        ({"augment": ["color"], "adaptive": AdaptiveAugmentation()}, "give one of them"),
        (
            {"channels": 4, "adaptive": AdaptiveAugmentation()},
            r"data\.channels=4: brightness, .* change 1 or 3 channels; give method\.adaptive\.names=\[flip,",
        ),
    ],
)
def test_slips(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize(
    "options",
    [
        *({"lambda_r1": -1}, {"r1_interval": 0}, {"style_mixing": 1.5}, {"path_length_shrink": 0}),
        *({"lambda_r1": math.nan}, {"lambda_path_length": math.nan}, {"path_length_decay": math.nan}),
    ],
)
def test_loss_slips(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(options))}"):
        StyleGAN2Loss(**options)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "label_dim=0: the generator's is 3"),
        ({"label_dim": 3, "channels": 1}, "channels=1: the generator's is 3"),
        ({"label_dim": 3, "size_px": 16}, "size_px=16: the generator's is 8"),
    ],
)
def test_both_networks_agree(arguments: dict[str, int], told: str) -> None:
    generator, _ = networks(3)
    small = {"size_px": 8, "channel_base": 64, "channel_max": 8, "mapping_layers": 2}
    discriminator = StyleGAN2Discriminator(**small | arguments)
    with pytest.raises(UserError, match=rf"^discriminator\.{told}$"):
        StyleGAN2(generator, discriminator, LOSS, ADAM)


def test_the_generator_is_one_with_styles() -> None:
    with pytest.raises(
        UserError, match=r"^generator: method=stylegan2 takes generator=stylegan2, not a Conv2d$"
    ):
        StyleGAN2(nn.Conv2d(3, 3, 1), networks()[1], LOSS, ADAM)  # type: ignore[arg-type]
