"""The benchmark of edits: what it measures, by hand, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import editing
from i2i_lightning.data.toyfaces.parameters import RANGES, sample_parameters
from i2i_lightning.metrics.judge import load_judge


def test_changes_inside_over_outside() -> None:
    difference, box = torch.full((1, 3, 8, 8), -0.1), torch.zeros(1, 8, 8)
    box[:, 2:4, 2:4] = 1
    difference[..., 2:4, 2:4] = 0.4
    assert editing.inside_over_outside(difference, box) == pytest.approx(4)
    assert editing.rms(difference, box[None]) == pytest.approx(0.4)


def test_shares_of_the_way() -> None:
    first, last = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    assert editing.share_of_way(first, torch.tensor([[0.5, 7.0]]), last) == pytest.approx([0.25])


def test_rank_correlation() -> None:
    assert editing.spearman(torch.tensor([0.0, 1, 5, 9])) == pytest.approx(1)
    assert editing.spearman(torch.tensor([3.0, 2, 1, -9])) == pytest.approx(1)
    assert editing.spearman(torch.tensor([0.0, 2, 1, 3])) == pytest.approx(0.8)


def test_a_steady_reading_of_a_mirrored_face_is_the_mirrored_reading() -> None:
    judge = load_judge()
    images = editing.photos([sample_parameters("val", index) for index in range(3)], 32)
    read, mirrored = editing.steady(judge, images), editing.steady(judge, images.flip(-1))
    signs = torch.tensor([-1.0 if name in {"yaw", "roll", "gaze_x", "light_x"} else 1.0 for name in RANGES])
    assert torch.allclose(mirrored, signs * read, atol=1e-4)
    assert (read - judge.read(images).parameters[:, : len(RANGES)]).abs().mean() < 0.2


def test_a_face_between_two_has_the_mean_of_their_numbers() -> None:
    one, other = (sample_parameters("val", index) for index in range(2))
    middle = editing.between(one, other, 0.5)
    assert middle.yaw == pytest.approx((one.yaw + other.yaw) / 2)
    assert middle.skin_rgb[1] == pytest.approx((one.skin_rgb[1] + other.skin_rgb[1]) / 2)
    assert (middle.hair_style, middle.texture_seed) == (one.hair_style, one.texture_seed)
    assert editing.between(one, other, 0.0) == one


def test_a_strip_is_judged_by_what_its_ends_differ_in() -> None:
    face = editing.replace(sample_parameters("val", 0), yaw=-0.8)
    strip = editing.photos([editing.replace(face, yaw=yaw) for yaw in (-0.8, -0.3, 0.3, 0.8)], 64)
    yaw = torch.tensor([name == "yaw" for name in RANGES])
    assert editing.monotony(load_judge(), strip, yaw) == [pytest.approx(1)]
    assert editing.monotony(load_judge(), strip, torch.zeros_like(yaw)) == []


def test_boxes_hold_the_mouth() -> None:
    points = torch.full((1, 33, 2), 0.1)
    for index, name in enumerate(editing.LANDMARK_NAMES):
        if name.startswith("mouth"):
            points[0, index] = torch.tensor([0.5, 0.75])
    places = editing.mouth_boxes(points, 32)[0, 0].nonzero()
    assert places.amin(0).tolist() == [22, 14]
    assert places.amax(0).tolist() == [25, 17]


@pytest.mark.parametrize(("mean", "says"), [(3.5, "holds"), (3.1, "undecided"), (2.5, "does not hold")])
def test_verdicts_take_two_standard_errors(mean: float, says: str) -> None:
    assert editing.judged("expression.w_plus", {"mean": mean, "error": 0.1}) == says


@pytest.mark.slow
def test_it_runs_and_keeps_other_parts(tmp_path: Path) -> None:
    path = tmp_path / "editing.json"
    words = ["--pairs", "2", "--steps", "30", "--edit-steps", "2", "--json", str(path)]
    editing.main([*words, "--only", "inpaint"])
    editing.main([*words, "--only", "morph", "expression", "style"])
    results = json.loads(path.read_text())["results"]
    assert set(editing.CLAIMS) - {"morph.faces", "morph.samples"} <= set(results)
