"""An evaluation against the same figures computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.data.paired import PairedDataModule
from i2i_lightning.data.toyfaces.module import ToyFacesDataModule
from i2i_lightning.data.toyfaces.unpaired import ToyFacesUnpairedDataModule
from i2i_lightning.metrics import better, suite
from i2i_lightning.metrics.evaluation import CEILING, COPY, OUTPUTS, REAL, evaluate
from i2i_lightning.metrics.frechet import frechet_distance
from i2i_lightning.metrics.image import psnr, ssim
from i2i_lightning.metrics.segmentation import confusion, pixel_accuracy
from i2i_lightning.types import UserError


class TinyFeatures(torch.nn.Module):
    """Means and deviations of the channels: six features."""

    def __init__(self, folder: Any = None) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float().flatten(2)
        return torch.cat([pixels.mean(2), pixels.std(2)], 1) / 255


@pytest.fixture
def tiny_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from i2i_lightning.metrics import inception

    monkeypatch.setattr(inception, "InceptionFeatures", TinyFeatures)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 7)):
        (tmp_path / split).mkdir()
        for index in range(count):
            pixels = rng.integers(0, 256, (24, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{index}.png")
    return tmp_path


def data_of(root: Path, split: str, **options: Any) -> PairedDataModule:
    data = PairedDataModule(root, load_px=None, crop_px=24, flip=False, val_batch_size=3, **options)
    data.setup({"train": "fit", "test": "test"}[split])
    return data


def darker(real_a: Tensor, names: Sequence[str], seed: int) -> Tensor:
    return real_a * 0.5 - 0.1 * seed


@pytest.mark.usefixtures("tiny_features")
def test_rows_are_what_one_computes_by_hand(pairs: Path) -> None:
    data = data_of(pairs, "test")
    result = evaluate(
        darker,
        data,
        "test",
        names=["psnr", "ssim", "fid"],
        seeds=[0, 1],
        train_data=lambda: data_of(pairs, "train"),
    )
    whole = {
        split: [
            torch.from_numpy(np.array(Image.open(pairs / split / f"{i}.png"))).permute(2, 0, 1)
            for i in range(n)
        ]
        for split, n in (("train", 5), ("test", 7))
    }
    a = torch.stack(whole["test"])[..., :24]
    b = torch.stack(whole["test"])[..., 24:]
    train_b = torch.stack(whole["train"])[..., 24:]
    features = TinyFeatures()
    for number, figures in enumerate(result.rows[OUTPUTS]):
        fake = ((a.float() / 127.5 - 1) * 0.5 - 0.1 * number + 1) * 127.5
        fake = fake.clamp(0, 255).round().to(torch.uint8)
        assert figures["psnr"] == pytest.approx(float(psnr(fake, b).mean()), rel=1e-5)
        assert figures["ssim"] == pytest.approx(float(ssim(fake, b).mean()), rel=1e-4)
        assert figures["fid"] == pytest.approx(frechet_distance(features(fake), features(b)), rel=1e-4)
    (copy,) = result.rows[COPY]
    assert copy["psnr"] == pytest.approx(float(psnr(a, b).mean()), rel=1e-5)
    (ceiling,) = result.rows[CEILING]
    assert ceiling == {"fid": pytest.approx(frechet_distance(features(train_b), features(b)), rel=1e-4)}
    outputs = result.figures()[OUTPUTS]["psnr"]
    values = [figures["psnr"] for figures in result.rows[OUTPUTS]]
    assert outputs["mean"] == pytest.approx(sum(values) / 2)
    assert outputs["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert result.num_images == 7
    assert result.sizes_px == [(24, 24)]
    assert result.protocol["fid"]["num_train_targets"] == 5
    assert (result.protocol["fid"]["num_outputs"], result.protocol["fid"]["num_targets"]) == (7, 7)
    assert [list(row) for row in result.samples] == [["input", "output", "target"]] * 7
    assert np.array_equal(result.samples[3]["target"], b[3].permute(1, 2, 0).numpy())


def test_the_first_images_alone(pairs: Path) -> None:
    data = data_of(pairs, "test")
    few = evaluate(darker, data, "test", names=["psnr"], max_images=4, num_samples=2)
    target = torch.stack([data.test_set[0, i]["real_b"] for i in range(4)])  # type: ignore[index]
    source = torch.stack([data.test_set[0, i]["real_a"] for i in range(4)])  # type: ignore[index]
    assert few.num_images == 4
    assert few.rows[COPY][0]["psnr"] == pytest.approx(float(psnr(source, target).mean()), rel=1e-5)
    assert len(few.samples) == 2


def test_label_outputs_are_compared_as_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truths = []
    for side in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / side).mkdir()
        for index in range(3):
            ids = rng.integers(0, 4, (16, 16), dtype=np.uint8)
            pixels = ids if side.endswith("B") else rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / side / f"{index}.png")
            truths += [ids] if side == "testB" else []

    def constant(real_a: Tensor, names: Sequence[str], seed: int) -> Tensor:
        scores = torch.zeros(len(real_a), 4, *real_a.shape[-2:])
        scores[:, 2] = 1
        return scores

    data = PairedDataModule(
        tmp_path, layout="folders", out_kind="labels", out_channels=4, load_px=None, crop_px=16
    )
    data.setup("test")
    result = evaluate(constant, data, "test")
    truth = torch.from_numpy(np.stack(truths)).long()
    expected = pixel_accuracy(confusion(torch.full_like(truth, 2), truth, 4))
    (figures,) = result.rows[OUTPUTS]
    assert list(figures) == ["pixel_accuracy", "class_accuracy", "mean_iou"]
    assert figures["pixel_accuracy"] == pytest.approx(float(expected))
    assert figures["class_accuracy"] == pytest.approx(0.25)
    assert COPY not in result.rows


def test_the_judge_reads_outputs_copies_and_real_pictures() -> None:
    data = ToyFacesDataModule("regions_to_photo", 32, num_train=2, num_val=2, num_test=4, val_batch_size=2)
    data.setup("test")
    perfect = {name: data.test_set[0, i]["real_b"] for i, name in enumerate(data.test_set.names)}  # type: ignore[union-attr,index]

    def oracle(real_a: Tensor, names: Sequence[str], seed: int) -> Tensor:
        return torch.stack([perfect[name].float() / 127.5 - 1 for name in names])

    result = evaluate(oracle, data, "test", names=["psnr"])
    (outputs,), (real,), (copied,) = (result.rows[row] for row in (OUTPUTS, REAL, COPY))
    assert outputs["psnr"] == suite.MAX_PSNR_DB
    for name in better.JUDGE_BETTER:
        assert outputs[name] == pytest.approx(real[name])
        assert result.protocol[name]["better"] == better.JUDGE_BETTER[name]
    assert copied["judge_iou"] != pytest.approx(real["judge_iou"], abs=1e-6)
    assert not set(better.HIDDEN_BETTER) & set(outputs)


@pytest.mark.usefixtures("tiny_features")
@pytest.mark.parametrize("direction", ["ab", "ba"])
def test_hidden_pairs_score_an_unpaired_translation(direction: str) -> None:
    data = ToyFacesUnpairedDataModule(crop_px=32, num_train_a=2, num_train_b=2, num_val=1, num_test=12)
    data.val_batch_size = 5
    data.setup("test")
    here = direction[0]
    batches = [data.to_network(batch) for batch in data.test_dataloader()]
    partner = {
        name: picture
        for batch in batches
        for name, picture in zip(batch[f"name_{here}"], batch[f"partner_{here}"], strict=True)  # type: ignore[literal-required]
    }

    def oracle(real: Tensor, names: Sequence[str], seed: int) -> Tensor:
        return torch.stack([partner[name] for name in names])

    def none(real: Tensor, names: Sequence[str], seed: int) -> Tensor:
        return real.flip(0)

    (perfect,), (real,), (copied,) = (
        evaluate(oracle, data, "test", direction=direction).rows[row] for row in (OUTPUTS, REAL, COPY)
    )
    for name in (*better.JUDGE_BETTER, *better.HIDDEN_BETTER):
        assert perfect[name] == pytest.approx(real[name])
    assert perfect["rank_first"] == 1.0
    assert perfect["judge_style"] == 1.0
    assert copied["judge_style"] == 0.0
    assert copied["background_change"] == 0.0
    (wrong,) = evaluate(none, data, "test", direction=direction).rows[OUTPUTS]
    assert wrong["rank_first"] < 0.8
    assert wrong["kid"] != perfect["kid"]


def test_pairs_are_not_asked_for_where_there_are_none() -> None:
    data = ToyFacesUnpairedDataModule(crop_px=16, num_train_a=2, num_train_b=2, num_val=1, num_test=2)
    data.setup("test")
    data.test_set.sides[0].truth.clear()  # type: ignore[union-attr]
    data.test_set.sides[1].truth.clear()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="psnr compare pairs, and this data has none"):
        evaluate(darker, data, "test", names=["psnr"])


def test_slips_are_told_before_anything_is_translated(pairs: Path) -> None:
    def never(real_a: Tensor, names: Sequence[str], seed: int) -> Tensor:
        raise AssertionError("translated")

    with pytest.raises(UserError, match="no metric psrn"):
        evaluate(never, data_of(pairs, "test"), "test", names=["psrn"])
    with pytest.raises(UserError, match="palette"):
        evaluate(never, data_of(pairs, "test"), "test", names=["mean_iou"])
