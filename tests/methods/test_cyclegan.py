"""CycleGAN against the reference step written out in plain PyTorch, its options, and its slips."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import reference_cyclegan
from benchmarks.reference_cyclegan import PlainCycleGAN, PlainPool
from i2i_lightning.data.toyfaces.unpaired import ToyFacesUnpairedDataModule
from i2i_lightning.methods import cyclegan
from i2i_lightning.methods.cyclegan import CycleGAN, CycleGANLoss
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.networks.layers import Norm
from i2i_lightning.networks.patchgan import PatchGAN, PixelGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import UserError

ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))
NETWORKS = ("generator_ab", "generator_ba", "discriminator_a", "discriminator_b")


def items(
    count: int, height: int = 16, width: int = 16, dtype: torch.dtype = torch.float32, channels: int = 3
) -> list[dict[str, Any]]:
    rng = torch.Generator().manual_seed(7)

    def image(channels: int) -> Tensor:
        return torch.rand(channels, height, width, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1

    return [
        {"real_a": image(3), "real_b": image(channels), "name_a": str(index), "name_b": str(index)}
        for index in range(count)
    ]


def build(
    norm: Norm = "instance", dropout: bool = False, spectral_norm: bool = False, **options: Any
) -> CycleGAN:
    torch.manual_seed(0)
    loss = options.pop("loss", CycleGANLoss())
    return CycleGAN(
        *(ResNetGenerator(3, 3, 4, 1, norm, dropout) for _ in range(2)),
        *(PatchGAN(3, 4, 1, norm, spectral_norm) for _ in range(2)),
        loss,
        ADAM,
        **options,
    )


class Recorder(L.Callback):
    """Keep the loss terms of every batch."""

    def __init__(self) -> None:
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.terms.append({name: value.item() for name, value in pl_module.step_terms.items()})


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {"max_epochs": 1, "precision": "32-true", **options}
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


def fit(
    method: L.LightningModule, data: list[dict[str, Any]], batch_size: int = 2, **options: Any
) -> Recorder:
    recorder = Recorder()
    trainer(recorder, **options).fit(method, DataLoader(data, batch_size=batch_size))  # type: ignore[arg-type]
    return recorder


def batches(data: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    return list(DataLoader(data, batch_size=batch_size))  # type: ignore[arg-type]


def plain_twin(method: CycleGAN, dtype: torch.dtype, lambda_identity: float = 0.5) -> PlainCycleGAN:
    """Return the written-out version with the same weights and the same draws."""
    generators = [reference_cyclegan.resnet(3, 3, 4, 1) for _ in range(2)]
    discriminators = [reference_cyclegan.patchgan(3, 4, 1) for _ in range(2)]
    for name, network in zip(NETWORKS, [*generators, *discriminators], strict=True):
        reference_cyclegan.copy_weights(getattr(method, name), network)
        network.to(dtype)
    pools = [PlainPool(pool.size, pool.draw) for pool in method.pools.values()]
    return PlainCycleGAN(*generators, *discriminators, *pools, lambda_identity=lambda_identity)


pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


@pytest.mark.parametrize("pool_size", [0, 3])
@pytest.mark.parametrize("lambda_identity", [0.5, 0.0])
def test_five_steps_equal_the_reference(pool_size: int, lambda_identity: float) -> None:
    data = items(10, dtype=torch.float64)
    method = build(pool_size=pool_size, loss=CycleGANLoss(lambda_identity=lambda_identity), seed=4)
    twin = plain_twin(method, torch.float64, lambda_identity)
    ours = fit(method, data, precision="64-true")
    theirs = [twin.step(batch) for batch in batches(data, 2)]
    assert len(ours.terms) == len(theirs) == 5
    for mine, reference in zip(ours.terms, theirs, strict=True):
        assert set(reference) == {
            name for name in mine if name.split("/")[1].startswith(("gan", "cyc", "ide"))
        }
        for name, value in reference.items():
            assert mine[name] == pytest.approx(value.item(), rel=1e-10), name
    if pool_size:
        assert sum(method.pools["a"].draw(number)[0] for number in range(pool_size, 10)) > 1  # it was used
        for ours_p, theirs_p in ((method.pools["a"], twin.pool_a), (method.pools["b"], twin.pool_b)):
            torch.testing.assert_close(
                torch.stack(ours_p.images), torch.cat(theirs_p.images), rtol=1e-10, atol=1e-13
            )
    for name in NETWORKS:
        network, written_out = getattr(method, name), getattr(twin, name)
        image = data[0]["real_a"][None]
        torch.testing.assert_close(network(image), written_out(image), rtol=1e-10, atol=1e-13)
        pairs = zip(network.named_parameters(), written_out.parameters(), strict=True)
        compared = [
            key
            for (key, mine_p), theirs_p in pairs
            if not _cancelled(network, key) and _close(mine_p, theirs_p)
        ]
        assert len(compared) == sum(not _cancelled(network, key) for key, _ in network.named_parameters())


def _close(mine: Tensor, reference: Tensor) -> bool:
    torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-13)
    return True


def _cancelled(network: nn.Module, key: str) -> bool:
    """A bias before an instance norm has no gradient but rounding noise, which Adam turns into full steps."""
    if not key.endswith("bias"):
        return False
    return key not in ("head.bias", "blocks.0.conv.bias") or (
        key == "blocks.0.conv.bias" and isinstance(network, ResNetGenerator)
    )


def test_two_steps_in_float32_are_close() -> None:
    data = items(4)
    method = build()
    twin = plain_twin(method, torch.float32)
    ours = fit(method, data)
    for mine, batch in zip(ours.terms, batches(data, 2), strict=True):
        for name, value in twin.step(batch).items():
            assert mine[name] == pytest.approx(value.item(), rel=1e-4), name


# Fewer passes, the same result.


class Counted(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.network(x)
        return out


def counted(method: CycleGAN) -> list[int]:
    for name in NETWORKS:
        hidden = Counted(getattr(method, name))
        setattr(method, name, hidden)
    fit(method, items(2))
    return [getattr(method, name).calls for name in NETWORKS]


def test_passes_a_step() -> None:
    assert counted(build()) == [2, 2, 2, 2]
    assert counted(build(norm="none")) == [2, 2, 2, 2]
    assert counted(build(norm="batch")) == [3, 3, 3, 3]
    assert counted(build(dropout=True)) == [3, 3, 2, 2]
    assert counted(build(spectral_norm=True)) == [2, 2, 3, 3]
    assert counted(build(norm="batch", loss=CycleGANLoss(lambda_identity=0))) == [2, 2, 3, 3]


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_shared_passes_equal_plain_ones(norm: Norm) -> None:
    data = items(6, 16, 24, torch.float64)
    runs = []
    for together in (True, False):
        method = build(norm, pool_size=2)
        assert method.together == dict.fromkeys(NETWORKS, True)
        method.together = dict.fromkeys(NETWORKS, together)
        runs.append((fit(method, data, precision="64-true"), method))
    (shared, one), (plain, other) = runs
    for mine, reference in zip(shared.terms, plain.terms, strict=True):
        assert mine == pytest.approx(reference, rel=1e-10)
    for (key, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        network, _, inside = key.partition(".")
        if norm == "none" or not _cancelled(getattr(one, network), inside):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_sets_of_different_sizes_do_not_share() -> None:
    method = build()
    data = [{"real_a": torch.rand(3, 16, 16), "real_b": torch.rand(3, 24, 16)}]
    recorder = fit(method, data, batch_size=1)
    assert all(value == value for value in recorder.terms[0].values())
    assert [pool.images[0].shape[-2] for pool in method.pools.values()] == [24, 16]


# The objective.


def test_weights_of_the_terms() -> None:
    loss = CycleGANLoss(lambda_cycle=8, lambda_cycle_b=2, lambda_identity=0.25, lambda_gan=3)
    terms = fit(build(loss=loss), items(2)).terms[0]
    expected = 3 * (terms["generators/gan_ab"] + terms["generators/gan_ba"])
    expected += 8 * terms["generators/cycle_a"] + 2 * terms["generators/cycle_b"]
    expected += 2 * terms["generators/identity_a"] + 0.5 * terms["generators/identity_b"]
    assert terms["generators/total"] == pytest.approx(expected, rel=1e-5)
    expected = terms["discriminators/gan_a"] + terms["discriminators/gan_b"]
    assert terms["discriminators/total"] == pytest.approx(expected, rel=1e-5)


def test_cycle_alone_leaves_the_discriminators_out() -> None:
    method = build(loss=CycleGANLoss(lambda_gan=0))
    before = copy.deepcopy(method.state_dict())
    terms = fit(method, items(2)).terms[0]
    assert not any("gan" in name or "discriminator" in name for name in terms)
    changed = {
        key.split(".")[0] for key, value in method.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"generator_ab", "generator_ba"}


def test_the_default_identity_weight_is_an_effective_five() -> None:
    assert CycleGANLoss().generator_weights["identity_a"] == 5.0


def test_the_gradient_penalty_is_applied() -> None:
    terms = fit(build(loss=CycleGANLoss(gan_mode="wgangp", lambda_gp=7)), items(2)).terms[0]
    expected = sum(terms[f"discriminators/gan_{d}"] + 7 * terms[f"discriminators/gp_{d}"] for d in "ab")
    assert terms["discriminators/total"] == pytest.approx(expected, rel=1e-4)


def test_the_perceptual_cycle_is_weighed_and_neither_trained_nor_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Halves(torch.nn.Module):
        """A distance that anyone can compute, with a weight that nobody should touch."""

        def __init__(self, net: str) -> None:
            super().__init__()
            assert net == "vgg"
            self.weight = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self.weight * (image - target).square().flatten(1).mean(1)

    monkeypatch.setattr(cyclegan, "LPIPS", Halves)
    method = build(loss=CycleGANLoss(lambda_perceptual=3))
    seen: list[torch.Tensor] = []
    method.generator_ba.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    data = items(1)
    terms = fit(method, data, batch_size=1).terms[0]
    rest = sum(
        weight * terms[f"generators/{name}"]
        for name, weight in CycleGANLoss().generator_weights.items()
        if not name.startswith("perceptual")
    )
    added = 3 * (terms["generators/perceptual_a"] + terms["generators/perceptual_b"])
    assert terms["generators/total"] == pytest.approx(rest + added, rel=1e-5)
    real_a = batches(data, 1)[0]["real_a"]
    assert terms["generators/perceptual_a"] == pytest.approx(
        float((seen[1] - real_a).square().mean() / 2), rel=1e-4
    )
    assert float(method.perceptual[0].weight) == 0.5
    assert not any("perceptual" in key for key in method.state_dict())


def test_augmentation_is_seen_by_discriminators_alone() -> None:
    def first_terms(augment: list[str]) -> dict[str, float]:
        return fit(build(augment=augment), items(2)).terms[0]

    plain, changed = first_terms([]), first_terms(["color", "translation", "cutout"])
    for name in ("cycle_a", "cycle_b", "identity_a", "identity_b"):
        assert plain[f"generators/{name}"] == changed[f"generators/{name}"]
    for name in ("generators/gan_ab", "discriminators/gan_a", "discriminators/gan_b"):
        assert plain[name] != changed[name]


def test_averages_of_both_generators() -> None:
    method = build(ema_decay=0.9)
    before = copy.deepcopy(method.state_dict())
    fit(method, items(2))
    after = method.state_dict()
    for name in ("generator_ab", "generator_ba"):
        key = f"{name}.head.weight"
        torch.testing.assert_close(after[f"averages.{key}"], 0.9 * before[key] + 0.1 * after[key])


@pytest.mark.parametrize(
    "networks",
    [
        lambda: (UNet(3, 3, 5, 4), UNet(3, 3, 5, 4), PixelGAN(3, 4), PixelGAN(3, 4)),
        lambda: (
            ResNetGenerator(3, 3, 4, 1, upsample="resize"),
            ResNetGenerator(3, 3, 4, 1, upsample="resize"),
            PatchGAN(3, 4, 2, "none", spectral_norm=True),
            PatchGAN(3, 4, 2, "none", spectral_norm=True),
        ),
    ],
    ids=["unet-pixel", "resize-spectral"],
)
def test_other_networks_train(networks: Any) -> None:
    method = CycleGAN(*networks(), CycleGANLoss(), ADAM)
    before = copy.deepcopy(method.state_dict())
    recorder = fit(method, items(4, 32, 32))
    assert all(value == value for terms in recorder.terms for value in terms.values())
    changed = {
        key.split(".")[0] for key, value in method.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == set(NETWORKS)


def test_domains_of_different_channels() -> None:
    loss = CycleGANLoss(lambda_identity=0)
    networks = ResNetGenerator(3, 1, 4, 1), ResNetGenerator(1, 3, 4, 1), PatchGAN(3, 4, 1), PatchGAN(1, 4, 1)
    fit(CycleGAN(*networks, loss, ADAM), items(2, channels=1))
    with pytest.raises(UserError, match=r"loss\.lambda_identity=0\.5: a generator from 3 to 1"):
        CycleGAN(*networks, CycleGANLoss(), ADAM)


# Outside training.


def toyfaces(**options: Any) -> ToyFacesUnpairedDataModule:
    return ToyFacesUnpairedDataModule(
        crop_px=16, num_train_a=4, num_train_b=6, num_val=3, batch_size=2, **options
    )


def test_validation_returns_both_directions() -> None:
    method, seen = build(), []

    class Look(L.Callback):
        def on_validation_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
        ) -> None:
            seen.append((outputs, batch))

    data = toyfaces(val_batch_size=2)
    trainer(Look(), limit_train_batches=0).validate(method, datamodule=data, verbose=False)
    assert [len(outputs["fake_a"]) for outputs, _ in seen] == [2, 1]
    outputs, batch = seen[0]
    assert list(outputs) == ["real_a", "fake_b", "cycle_a", "real_b", "fake_a", "cycle_b"]
    with torch.no_grad():
        torch.testing.assert_close(
            outputs["cycle_a"], method.generator_ba(method.generator_ab(batch["real_a"]))
        )
        torch.testing.assert_close(
            outputs["cycle_b"], method.generator_ab(method.generator_ba(batch["real_b"]))
        )


def test_what_comes_again_is_not_measured_again() -> None:
    method = build()
    batch: Any = {key: torch.rand(3, 3, 16, 16) for key in ("real_a", "real_b")}
    batch |= {"first_a": torch.tensor([True, False, False]), "first_b": torch.ones(3, dtype=torch.bool)}
    outputs = method.validation_step(batch, 0)
    assert {name: len(images) for name, images in outputs.items()} == {
        "real_a": 1, "fake_b": 1, "cycle_a": 1, "real_b": 3, "fake_a": 3, "cycle_b": 3,
    }  # fmt: skip
    batch["first_a"] = torch.zeros(3, dtype=torch.bool)
    assert len(method.validation_step(batch, 0)["fake_b"]) == 0


def test_preview_leaves_no_trace() -> None:
    method = build(norm="batch", dropout=True).train()
    batch: Any = {key: torch.rand(2, 3, 16, 16) for key in ("real_a", "real_b")}
    state, rng = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    columns = method.preview(batch)
    assert {direction: list(found) for direction, found in columns.items()} == {
        "ab": ["input", "output", "cycle"],
        "ba": ["input", "output", "cycle"],
    }
    assert torch.equal(rng, torch.get_rng_state())
    assert all(module.training for module in method.modules())
    for name, value in method.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_checkpoints_say_what_translates() -> None:
    method = build()
    data = toyfaces()
    fitted = trainer(limit_val_batches=0)
    fitted.fit(method, datamodule=data)
    checkpoint: dict[str, Any] = {}
    method.on_save_checkpoint(checkpoint)
    assert {key: value["generator"] for key, value in checkpoint["translation"]["directions"].items()} == {
        "ab": "generator_ab",
        "ba": "generator_ba",
    }
    assert [len(pools["a"]["images"]) for pools in checkpoint["image_pools"]] == [6]


# Slips.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lambda_cycle_a": -1.0}, "loss.lambda_cycle_a=-1.0"),
        ({"lambda_cycle": 0.0, "lambda_gan": 0.0}, "leave nothing to train on"),
        ({"gan_mode": "lsgna"}, "lsgna"),
    ],
)
def test_impossible_losses_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        CycleGANLoss(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"augment": ["colour"]}, r"method\.augment: no augmentation colour; there is color, translation"),
        ({"pool_size": -1}, r"method\.pool_size=-1"),
        ({"norm": "batch", "loss": CycleGANLoss(gan_mode="wgangp")}, r"discriminator\.norm=instance"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(**options)


def test_a_size_that_the_networks_cannot_take_is_told_before_training() -> None:
    method = CycleGAN(
        UNet(3, 3, 5, 4), UNet(3, 3, 5, 4), PatchGAN(3, 4, 1), PatchGAN(3, 4, 1), CycleGANLoss(), ADAM
    )
    with pytest.raises(UserError, match="multiples of 32"):
        trainer().fit(method, datamodule=toyfaces())


def test_a_method_for_pairs_refuses_unpaired_data() -> None:
    method = Pix2Pix(ResNetGenerator(3, 3, 4, 1), PatchGAN(6, 4, 1), Pix2PixLoss(), ADAM)
    with pytest.raises(UserError, match=r"Pix2Pix learns from aligned pairs.*method=cyclegan"):
        trainer().fit(method, datamodule=toyfaces())
