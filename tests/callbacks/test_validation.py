from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.callbacks.validation import ValidationMetrics
from i2i_lightning.data.module import collate
from i2i_lightning.metrics.frechet import frechet_distance
from i2i_lightning.metrics.image import l1, ms_ssim, psnr, ssim
from i2i_lightning.metrics.kernel import kernel_distance
from i2i_lightning.metrics.suite import MAX_PSNR_DB
from i2i_lightning.types import ImageFormat, UserError


class TinyFeatures(nn.Module):
    """In the place of Inception: a fixed projection of a small picture; counts the images it reads."""

    seen = 0

    def __init__(self, folder: Any = None) -> None:
        super().__init__()
        weight = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))
        self.register_buffer("weight", weight)

    def forward(self, images: Tensor) -> Tensor:
        TinyFeatures.seen += len(images)
        small = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2)
        return (small.flatten(1) @ self.weight).relu()


@pytest.fixture
def tiny_features(monkeypatch: pytest.MonkeyPatch) -> type[TinyFeatures]:
    TinyFeatures.seen = 0
    monkeypatch.setattr("i2i_lightning.metrics.inception.InceptionFeatures", TinyFeatures)
    return TinyFeatures


@pytest.mark.parametrize("val_batch_size", [1, 2, 5])
def test_means_are_over_images_whatever_the_batches(
    val_batch_size: int, scripted: Any, shapes: Any, make_trainer: Any, tiny_features: Any
) -> None:
    names = ["l1", "psnr", "ssim", "ms_ssim", "fid", "kid"]
    trainer = make_trainer([ValidationMetrics(names, kid_subset_size=3)])
    module = scripted(output=lambda real_a: real_a * 0.9)
    data = shapes(num_val=5, val_batch_size=val_batch_size)
    trainer.validate(module, datamodule=data, verbose=False)
    batch = data.preview_batch(5)
    fake_b = batch["real_a"] * 0.9
    shown = (
        data.display_output(fake_b, batch["real_a"]),
        data.display_output(batch["real_b"], batch["real_a"]),
    )
    features = [TinyFeatures()(images) for images in shown]
    kid, kid_std = kernel_distance(*features, subset_size=3)
    expected = {
        "val/l1": l1(fake_b, batch["real_b"]).mean(),  # of the network's values, not of what is saved
        "val/psnr": psnr(*shown).mean(),
        "val/ssim": ssim(*shown).mean(),
        "val/ms_ssim": ms_ssim(*shown).mean(),
        "val/fid": frechet_distance(*features),
        "val/kid": kid,
        "val/kid_std": kid_std,
    }
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def test_metrics_can_be_monitored_while_training_and_tested(
    scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    trainer = make_trainer([ValidationMetrics(["l1"])])
    module, data = scripted(), shapes()
    trainer.fit(module, datamodule=data)
    assert set(trainer.callback_metrics) == {"val/l1"}
    trainer.test(module, datamodule=data, verbose=False)
    assert set(trainer.callback_metrics) == {"test/l1"}


def test_kid_decides_which_epoch_is_best(
    scripted: Any, shapes: Any, make_trainer: Any, tiny_features: Any, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(monitor="val/kid")
    trainer = make_trainer([ValidationMetrics(["kid"], kid_subset_size=4), checkpoints])
    trainer.fit(scripted(), datamodule=shapes(num_val=6, val_batch_size=4))
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert checkpoints.best_value is not None
    assert checkpoints.best_value <= float(trainer.callback_metrics["val/kid"])


def test_targets_are_read_once_and_other_data_anew(
    scripted: Any, shapes: Any, make_trainer: Any, tiny_features: Any
) -> None:
    callback = ValidationMetrics(["fid"])
    data = shapes(num_val=6, val_batch_size=4)
    module = scripted()
    trainer = make_trainer([callback], max_epochs=3)
    trainer.fit(module, datamodule=data)
    # One batch of 4 to rehearse, then all 6 in each epoch: the targets' 4 of the rehearsal, and the other 2.
    assert TinyFeatures.seen == (4 + 4) + (6 + 2) + 6 + 6
    kept = float(trainer.callback_metrics["val/fid"])
    TinyFeatures.seen = 0
    trainer.validate(module, datamodule=data, verbose=False)
    assert TinyFeatures.seen == 6
    assert float(trainer.callback_metrics["val/fid"]) == pytest.approx(kept, rel=1e-6)

    other = shapes(num_val=6, val_batch_size=4, px=24)
    fresh = make_trainer([ValidationMetrics(["fid"])])
    fresh.validate(module, datamodule=other, verbose=False)
    again = make_trainer([callback])
    again.validate(module, datamodule=other, verbose=False)
    assert again.callback_metrics["val/fid"] == fresh.callback_metrics["val/fid"]
    assert float(again.callback_metrics["val/fid"]) != pytest.approx(kept, rel=1e-3)


def test_the_fit_does_not_notice(scripted: Any, shapes: Any, make_trainer: Any, tiny_features: Any) -> None:
    ends = []
    for callbacks in ([ValidationMetrics(["l1", "ms_ssim", "fid", "kid"])], []):
        torch.manual_seed(0)
        module = scripted()
        make_trainer(callbacks).fit(module, datamodule=shapes())
        ends.append((module.state_dict(), torch.get_rng_state()))
    (first, rng), (second, other_rng) = ends
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(rng, other_rng)


def test_missing_weights_stop_the_run_before_it_trains(
    scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("I2I_WEIGHTS_DOWNLOAD", raising=False)
    module = scripted()
    with pytest.raises(UserError, match="i2i-weights get"):
        make_trainer([ValidationMetrics(["kid"])], num_sanity_val_steps=0).fit(module, datamodule=shapes())
    assert module.batches_seen == 0


def test_class_maps_need_no_palette(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    class Maps(shapes):  # type: ignore[misc]
        def formats(self) -> Any:
            return ImageFormat("image", 3), ImageFormat("labels", 3)

    names = ["pixel_accuracy", "class_accuracy", "mean_iou"]
    trainer = make_trainer([ValidationMetrics(names)])
    data = Maps(num_val=4, val_batch_size=3)
    trainer.validate(scripted(output=lambda real_a: -real_a), datamodule=data, verbose=False)
    batch = data.preview_batch(4)
    hits = (-batch["real_a"]).argmax(1) == batch["real_b"].argmax(1)
    assert set(trainer.callback_metrics) == {f"val/{name}" for name in names}
    assert float(trainer.callback_metrics["val/pixel_accuracy"]) == pytest.approx(float(hits.float().mean()))

    with pytest.raises(
        UserError, match=r"mean_iou must know the classes: give callbacks\.validation\.palette"
    ):
        make_trainer([ValidationMetrics(["mean_iou"])]).validate(
            scripted(), datamodule=shapes(), verbose=False
        )
    trainer = make_trainer([ValidationMetrics(["mean_iou"], palette=[[0, 0, 0], [255, 255, 255]])])
    trainer.validate(scripted(), datamodule=shapes(), verbose=False)
    assert 0 <= float(trainer.callback_metrics["val/mean_iou"]) <= 1


class Unpaired:
    """Mixed into the shapes: five pictures on side a, three on side b, which come again."""

    aligned = False
    partners = False

    def to_network(self, batch: dict[str, Any]) -> Any:
        images: dict[str, Any] = super().to_network(batch)  # type: ignore[misc]
        names = images.pop("name")
        index = torch.tensor([int(name[6:9]) - 100 for name in names])
        three = collate([self.val_set[0, int(i) % 3] for i in index])["real_b"]  # type: ignore[attr-defined]
        shown = {"name_a": names, "name_b": [f"b{int(i) % 3}" for i in index]}
        first = {"first_a": torch.ones(len(names), dtype=torch.bool), "first_b": index < 3}
        pair = {"partner_a": images["real_b"]} if self.partners else {}
        return {**images, "real_b": three.float() / 127.5 - 1, **shown, **first, **pair}


def each_once(scripted: Any, both_ways: bool) -> Any:
    """A method on sets without pairs: its validation gives each image of either side once."""

    class EachOnce(scripted):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            real_a, real_b = batch["real_a"][batch["first_a"]], batch["real_b"][batch["first_b"]]
            back = {"fake_a": real_b * 0.5} if both_ways else {}
            return {"real_a": real_a, "fake_b": real_a * 0.9, "real_b": real_b, **back}

    return EachOnce()


def test_sets_without_pairs(scripted: Any, shapes: Any, make_trainer: Any, tiny_features: Any) -> None:
    class Sets(Unpaired, shapes):  # type: ignore[misc]
        pass

    data = Sets(num_val=5, val_batch_size=2)
    module = each_once(scripted, both_ways=True)
    trainer = make_trainer([ValidationMetrics(["fid"])])
    trainer.validate(module, datamodule=data, verbose=False)
    batch = data.preview_batch(5)
    a, b, fakes_b, fakes_a = (
        TinyFeatures()(data.display_output(images, images))
        for images in (
            batch["real_a"],
            batch["real_b"][:3],
            batch["real_a"] * 0.9,
            batch["real_b"][:3] * 0.5,
        )
    )
    ab, ba = frechet_distance(fakes_b, b), frechet_distance(fakes_a, a)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    expected = {"val/fid": (ab + ba) / 2, "val/fid_ab": ab, "val/fid_ba": ba}
    assert metrics == pytest.approx(expected, rel=1e-5)

    one_way = make_trainer([ValidationMetrics(["fid"])])
    one_way.validate(each_once(scripted, both_ways=False), datamodule=data, verbose=False)
    assert {name: float(value) for name, value in one_way.callback_metrics.items()} == pytest.approx(
        {"val/fid": ab}, rel=1e-5
    )


def test_pairs_are_asked_for_only_where_they_are(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    class Sets(Unpaired, shapes):  # type: ignore[misc]
        pass

    data = Sets(num_val=5, val_batch_size=2)
    module = each_once(scripted, both_ways=False)
    with pytest.raises(UserError, match=r"psnr compare pairs, and this data has none; give .*=\[kid\]"):
        make_trainer([ValidationMetrics(["psnr"])]).validate(module, datamodule=data, verbose=False)
    Sets.partners = True  # hidden pairs are for scoring
    trainer = make_trainer([ValidationMetrics(["l1", "psnr"])])
    trainer.validate(module, datamodule=data, verbose=False)
    pairs = data.preview_batch(5)
    fake_b, partner = pairs["real_a"] * 0.9, pairs["partner_a"]
    shown = data.display_output(fake_b, fake_b), data.display_output(partner, partner)
    assert float(trainer.callback_metrics["val/l1"]) == pytest.approx(float(l1(fake_b, partner).mean()))
    assert float(trainer.callback_metrics["val/psnr"]) == pytest.approx(float(psnr(*shown).mean()))


def test_one_image_is_no_set(scripted: Any, shapes: Any, make_trainer: Any, tiny_features: Any) -> None:
    trainer = make_trainer([ValidationMetrics(["kid", "l1"])])
    with pytest.raises(UserError, match="kid compares sets, and there is but one val image"):
        trainer.fit(scripted(), datamodule=shapes(num_val=1))
    rehearsal = make_trainer([ValidationMetrics(["kid", "l1"])], fast_dev_run=True)
    rehearsal.fit(scripted(), datamodule=shapes(num_val=1))
    assert rehearsal.callback_metrics["val/l1"] >= 0


def test_an_equal_image_does_not_make_the_mean_infinite(
    scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    class Copies(scripted):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"real_a": batch["real_a"], "fake_b": batch["real_b"], "real_b": batch["real_b"]}

    trainer = make_trainer([ValidationMetrics()])
    trainer.validate(Copies(), datamodule=shapes(), verbose=False)
    assert trainer.callback_metrics["val/psnr"] == MAX_PSNR_DB
    torch.testing.assert_close(trainer.callback_metrics["val/ssim"], torch.tensor(1.0))


def test_errors(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    with pytest.raises(
        UserError, match=r"callbacks\.validation\.metrics: no metric lpips; there is l1, psnr"
    ):
        ValidationMetrics(["l1", "lpips"])
    with pytest.raises(UserError, match=r"callbacks\.validation\.metrics: ssim .* have 8x8; leave ssim out"):
        make_trainer([ValidationMetrics()]).validate(scripted(), datamodule=shapes(px=8), verbose=False)
    with pytest.raises(UserError, match=r"callbacks\.validation\.palette=maps: there is facades"):
        make_trainer([ValidationMetrics(["mean_iou"], palette="maps")]).validate(
            scripted(), datamodule=shapes(), verbose=False
        )


@pytest.mark.parametrize(
    ("monitor", "mode", "right"),
    [
        ("val/psnr", "min", "max"),
        ("val/kid", "max", "min"),
        ("val/fid_ba", "max", "min"),
        ("val/judge_iou", "min", "max"),
    ],
)
def test_a_mode_that_keeps_the_worst_epoch_is_refused(monitor: str, mode: Any, right: Any) -> None:
    with pytest.raises(UserError) as caught:
        Checkpoints(monitor=monitor, mode=mode)
    message = str(caught.value)
    assert f"callbacks.checkpoints.monitor={monitor} with callbacks.checkpoints.mode={mode}" in message
    assert f"give callbacks.checkpoints.mode={right}" in message
    Checkpoints(monitor=monitor, mode=right)
    Checkpoints(monitor="val/of_my_own", mode=mode)
