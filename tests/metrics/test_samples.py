"""Samples measured as a set: the same figures by hand, labels of the split, and a line for every slip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.data.images import ImageFolderDataModule
from i2i_lightning.data.toyfaces.images import ToyFacesImagesDataModule
from i2i_lightning.metrics import inception
from i2i_lightning.metrics.evaluation import OUTPUTS
from i2i_lightning.metrics.judge_distance import judge_distance
from i2i_lightning.metrics.kernel import kernel_distance
from i2i_lightning.metrics.samples import CEILING, evaluate_samples
from i2i_lightning.types import UserError
from tests.metrics.test_evaluation import TinyFeatures


def faces(split: str = "test", **options: Any) -> ToyFacesImagesDataModule:
    settings = {"crop_px": 32, "num_train": 6, "num_test": 7, "flip": False, "val_batch_size": 3, **options}
    data = ToyFacesImagesDataModule(**settings)
    data.setup({"train": "fit", "test": "test"}[split])
    return data


def made_of(names: Sequence[str], seed: int) -> Tensor:
    numbers = torch.tensor([int(name[-5:]) for name in names]).float()
    return torch.cos(numbers[:, None, None, None] + seed + torch.arange(3 * 32 * 32).view(3, 32, 32) / 500)


def shown(images: Tensor) -> Tensor:
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte()


def reals(data: ToyFacesImagesDataModule, split: str = "test") -> Tensor:
    dataset: Any = getattr(data, f"{split}_set")
    return torch.stack([dataset[0, index]["real"] for index in range(len(dataset))])


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("I2I_WEIGHTS_DOWNLOAD", raising=False)


def test_the_figures_are_those_of_the_sets(no_weights: None) -> None:
    calls: list[tuple[list[str], Any, int]] = []

    def generate(names: Sequence[str], label: Tensor | None, seed: int) -> Tensor:
        calls.append((list(names), label, seed))
        return made_of(names, seed)

    result = evaluate_samples(
        generate, faces(), "test", seeds=(0, 5), train_data=lambda: faces("train"), num_samples=4
    )
    names = [f"test_{index:05d}" for index in range(7)]
    assert [call[0] for call in calls[:3]] == [names[:3], names[3:6], names[6:]]
    assert all(label is None for _, label, _ in calls)
    assert [call[2] for call in calls] == [0] * 3 + [5] * 3
    real = reals(faces())
    expected = [judge_distance(shown(made_of(names, seed)), real)[0] for seed in (0, 5)]
    found = [figures["judge_distance"] for figures in result.rows[OUTPUTS]]
    assert found == pytest.approx(expected, rel=1e-3)
    # Without weights at hand, the judge's distance is all there is.
    assert list(result.rows[OUTPUTS][0]) == ["judge_distance"]
    ceiling = judge_distance(reals(faces("train"), "train"), real)[0]
    assert result.rows[CEILING][0]["judge_distance"] == pytest.approx(ceiling, rel=1e-3)
    assert (result.num_images, result.sizes_px) == (7, [(32, 32)])
    assert len(result.samples) == 4
    picture = shown(made_of(names, 0))[3].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(result.samples[3]["output"], picture)
    assert result.protocol["judge_distance"]["num_train_images"] == 6
    assert set(result.figures()[OUTPUTS]["judge_distance"]) == {"mean", "std"}


def test_labels_are_those_of_the_split_and_the_first_images_can_be_taken(no_weights: None) -> None:
    labels: list[Tensor] = []

    def generate(names: Sequence[str], label: Tensor | None, seed: int) -> Tensor:
        assert label is not None
        labels.append(label)
        return made_of(names, seed)

    data = faces(label="hair_style")
    result = evaluate_samples(generate, data, "test", max_images=4)
    assert result.num_images == 4
    classes = [int(data.test_set[0, index]["label"]) for index in range(4)]  # type: ignore[index]
    assert torch.cat(labels).argmax(1).tolist() == classes


def test_own_images_are_measured_by_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "InceptionFeatures", TinyFeatures)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        folder = tmp_path / ("train" if index < 4 else "test")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"i_{index:05d}.png")
    data = ImageFolderDataModule(tmp_path, crop_px=32, val_batch_size=2)
    data.setup("test")
    result = evaluate_samples(lambda names, label, seed: made_of(names, seed), data, "test")
    assert list(result.rows[OUTPUTS][0]) == ["kid", "fid"]
    made = shown(made_of([f"i_{index:05d}" for index in range(4, 9)], 0))
    features = TinyFeatures()
    real = torch.from_numpy(pixels[4:]).permute(0, 3, 1, 2)
    expected = kernel_distance(features(made), features(real))[0]
    assert result.rows[OUTPUTS][0]["kid"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UserError, match="judge_distance knows toy faces alone"):
        evaluate_samples(lambda *_: torch.empty(0), data, "test", names=["judge_distance"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"names": ["psnr", "kid", "l1"]}, "metrics: psnr, l1 compare an output with its target"),
        ({"names": ["is"]}, "metrics: no metric is"),
        ({"names": ["kid"]}, "i2i-weights get fid_inception"),
        ({"names": ["judge_distance"], "max_images": 1}, "split=test: 1 images are too few"),
    ],
)
def test_slips(no_weights: None, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as slip:
        evaluate_samples(lambda names, label, seed: made_of(names, seed), faces(), "test", **options)
    assert says in str(slip.value)
    assert len(str(slip.value).splitlines()) <= 3
