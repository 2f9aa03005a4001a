"""The judge's distance orders sets of toy faces as people would, and wants no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesPictures
from i2i_lightning.metrics.better import BETTER
from i2i_lightning.metrics.judge import to_judge
from i2i_lightning.metrics.judge_distance import BOUND, JudgeFeatures, judge_distance
from i2i_lightning.metrics.kernel import kernel_distance
from i2i_lightning.metrics.suite import MetricSuite
from i2i_lightning.metrics.table import format_table

PX, COUNT = 32, 48


def photos(split: str, kind: str = "photo") -> Tensor:
    drawn = ToyFacesPictures(ToyFaces(split, PX, (), COUNT), kind)
    return torch.stack([torch.from_numpy(drawn[index][0]) for index in range(COUNT)])


@pytest.fixture(scope="module")
def judge() -> JudgeFeatures:
    return JudgeFeatures()


@pytest.fixture(scope="module")
def val() -> Tensor:
    return photos("val")


@pytest.fixture(scope="module")
def test() -> Tensor:
    return photos("test")


def test_worse_sets_are_farther(judge: JudgeFeatures, val: Tensor, test: Tensor) -> None:
    def distance(images: Tensor) -> float:
        return judge_distance(val, images, 24, 20, features=judge)[0]

    shown = test.float() / 127.5 - 1
    small = F.interpolate(shown, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, (PX, PX), mode="bilinear")
    noise = torch.randn(shown.shape, generator=torch.Generator().manual_seed(0))
    alike = distance(test)
    assert abs(alike) < 0.05  # two draws from one distribution
    some, more, much = (distance((shown + share * noise).clamp(-1, 1)) for share in (0.1, 0.3, 1.0))
    assert alike + 0.03 < some < more < much < 30  # bounded, however far from a face
    assert distance(blurred) > alike + 0.1
    assert distance(photos("test", "cartoon")) > alike + 0.2
    # What is only diverse enough by repetition is seen too: one face, and four of them.
    one, four = distance(test[:1].expand(COUNT, -1, -1, -1)), distance(test[:4].repeat(COUNT // 4, 1, 1, 1))
    assert one > four > alike + 0.2


def test_features_are_those_that_parameters_are_read_off(judge: JudgeFeatures, test: Tensor) -> None:
    features = judge(test)
    network = judge.judge.network
    assert features.shape == (COUNT, judge.width)
    assert features.abs().max() == BOUND
    with torch.no_grad():
        summary = network.read(to_judge(test))[1]
    norm = network.normalise
    inside = features.abs() < BOUND
    torch.testing.assert_close((features * norm.weight + norm.bias)[inside], summary[inside])
    # Standardised over the judge's training, which had spoilt pictures too: clean ones vary a little less.
    assert features.mean().abs() < 0.05
    assert 0.7 < features.std() < 1.0
    # Batches, precision of the pictures and autocast change nothing.
    torch.testing.assert_close(torch.cat([judge(test[:5]), judge(test[5:])]), features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(judge(test.float() / 127.5 - 1), features, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(judge(test), features, rtol=1e-4, atol=1e-4)
    assert judge(test[:0]).shape == (0, judge.width)


def test_it_is_the_kernel_distance_of_the_features(judge: JudgeFeatures, val: Tensor, test: Tensor) -> None:
    expected = kernel_distance(judge(val), judge(test), 10, 7, seed=3)
    assert judge_distance(val, test, 10, 7, 3) == expected
    assert expected[1] > 0


def test_in_a_suite(
    judge: JudgeFeatures, val: Tensor, test: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path))  # where there are none
    suite = MetricSuite(["judge_distance"], kid_subset_size=10, kid_subsets=5)
    for start in range(0, COUNT, 20):
        suite.add_targets(val[start : start + 20])
        suite.update(test[start : start + 20])
    figures = suite.compute()
    assert list(figures) == ["judge_distance", "judge_distance_std"]
    expected = judge_distance(test, val, 10, 5, features=judge)
    assert tuple(figures.values()) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    protocol = suite.protocol()["judge_distance"]
    assert protocol["better"] == BETTER["judge_distance"] == "lower"
    assert protocol["subset_size"] == 10
    assert protocol["weights"] == "in the package"
    text = format_table({"outputs": figures}, width=80)
    assert "judge distance ↓" in text
    assert f"± {figures['judge_distance_std']:.4f}" in text


def test_beside_kid_each_has_its_own_features(val: Tensor, test: Tensor) -> None:
    def mean_colour(images: Tensor) -> Tensor:
        return images.float().mean((2, 3)) / 255

    suite = MetricSuite(["kid", "fid", "judge_distance"], kid_subset_size=10, features=mean_colour)
    suite.add_targets(val)
    suite.update(test)
    figures = suite.compute()
    kid = kernel_distance(mean_colour(test), mean_colour(val), 10)
    assert (figures["kid"], figures["kid_std"]) == pytest.approx(kid, rel=1e-4)
    assert figures["judge_distance"] == pytest.approx(judge_distance(test, val, 10)[0], rel=1e-3, abs=1e-5)
