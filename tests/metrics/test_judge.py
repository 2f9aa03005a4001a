"""The judge's measures against values by hand, and the shipped judge on held-out faces."""

from __future__ import annotations

import math
from importlib import resources

import pytest
import torch

from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, LANDMARK_NAMES
from i2i_lightning.data.toyfaces.parameters import VECTOR_NAMES
from i2i_lightning.metrics.judge import (
    JUDGE_PX,
    NUM_CONTINUOUS,
    OUTER_EYE_CORNERS,
    STYLES,
    WEIGHTS_NAME,
    JudgeNetwork,
    Scores,
    held_out_scores,
    in_eye_frame,
    judge_from_state,
    landmark_error,
    load_judge,
    parameter_error,
    save_judge,
    to_judge,
)
from i2i_lightning.metrics.judge_training import draw_faces
from i2i_lightning.types import UserError


def test_landmark_error_by_hand():
    true = torch.zeros(2, len(LANDMARK_NAMES), 2)
    left, right = OUTER_EYE_CORNERS
    true[:, left, 0], true[:, right, 0] = 0.25, 0.75
    pred = true.clone()
    pred[1, :, 1] += 0.1
    torch.testing.assert_close(landmark_error(pred, true), torch.tensor([0.0, 0.2]))


def test_the_eye_frame_undoes_place_size_and_roll():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, len(LANDMARK_NAMES), 2, generator=generator)
    cos, sin = math.cos(0.3), math.sin(0.3)
    turned = 1.7 * points @ torch.tensor([[cos, sin], [-sin, cos]]) + torch.tensor([0.2, -0.1])
    framed = in_eye_frame(points)
    torch.testing.assert_close(in_eye_frame(turned), framed, atol=1e-4, rtol=1e-3)
    left, right = OUTER_EYE_CORNERS
    torch.testing.assert_close(framed[0, left], torch.tensor([-0.5, 0.0]))
    torch.testing.assert_close(framed[1, right], torch.tensor([0.5, 0.0]))


def test_parameter_error_by_hand():
    true = torch.zeros(2, len(VECTOR_NAMES))
    pred = torch.zeros(2, len(VECTOR_NAMES)) - 0.0
    pred[:, NUM_CONTINUOUS:] = -1.0
    pred[0, 0], pred[1, 0] = 0.5, -3.0  # Clamped to -1.
    true[0, NUM_CONTINUOUS] = 1.0
    errors = parameter_error(pred, true)
    assert errors[0] == pytest.approx((0.5 + 1.0) / 2)
    assert errors[NUM_CONTINUOUS] == pytest.approx(0.5)
    assert errors.sum() == pytest.approx(0.75 + 0.5)


def test_any_size_and_type_is_brought_to_the_network():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (2, 3, 96, 96), generator=generator, dtype=torch.uint8)
    from_bytes, from_floats = to_judge(levels), to_judge(levels.float() / 127.5 - 1)
    assert from_bytes.shape == (2, 3, JUDGE_PX, JUDGE_PX)
    torch.testing.assert_close(from_bytes, from_floats)
    for size_px in (32, 64, 200):
        flat = torch.full((1, 3, size_px, size_px), 0.3)
        torch.testing.assert_close(to_judge(flat), torch.full((1, 3, 64, 64), 0.3))
    with pytest.raises(UserError, match=r"RGB pictures .* not \(1, 1, 64, 64\)"):
        to_judge(torch.zeros(1, 1, 64, 64))


def test_network_shapes_and_half_precision_file(tmp_path):
    torch.manual_seed(0)
    network = JudgeNetwork(8).eval()
    path = tmp_path / "judge.pt"
    save_judge(network, str(path))
    judge = judge_from_state(torch.load(path, weights_only=True))
    images = torch.rand(2, 3, 50, 50) * 2 - 1
    reading = judge.read(images)
    assert reading.parsing.shape == (2, len(CLASS_NAMES), 64, 64)
    assert reading.landmarks.shape == (2, len(LANDMARK_NAMES), 2)
    assert reading.parameters.shape == (2, len(VECTOR_NAMES))
    assert reading.style.shape == (2, len(STYLES))
    assert not reading.style.requires_grad
    assert judge.parse(reading, 50, 70).shape == (2, 50, 70)
    with torch.no_grad():
        expected = network(to_judge(images))
    torch.testing.assert_close(reading.parsing, expected.parsing, atol=0.02, rtol=0.02)
    torch.testing.assert_close(reading.landmarks, expected.landmarks, atol=1e-3, rtol=0)


def test_scores_do_not_depend_on_the_batches():
    judge = load_judge()
    faces = draw_faces("test", 6, 64, ("photo",), print)
    whole, parts = Scores(judge), Scores(judge)
    whole.update(faces.pictures["photo"], faces.parsing, faces.landmarks, faces.parameters)
    for cut in (slice(0, 4), slice(4, 6)):
        parts.update(
            faces.pictures["photo"][cut], faces.parsing[cut], faces.landmarks[cut], faces.parameters[cut]
        )
    first, second = whole.compute(), parts.compute()
    for name in ("iou", "pixel_accuracy", "landmark_error", "parameter_error", "attribute_error"):
        assert first[name] == pytest.approx(second[name], abs=1e-4)
    assert sum(first["style"].values()) == pytest.approx(1, abs=1e-4)


def test_the_shipped_judge_is_small_and_safe():
    with resources.as_file(resources.files("i2i_lightning.metrics").joinpath(WEIGHTS_NAME)) as path:
        assert path.stat().st_size <= 4 * 2**20
        torch.load(path, weights_only=True)
    assert set(held_out_scores()["test"]) == {
        "photo_64",
        "cartoon_64",
        "photo_128",
        "cartoon_128",
        "blank",
        "chance",
    }


@pytest.mark.parametrize("size_px", [64, 128])
@pytest.mark.parametrize("kind", ["photo", "cartoon"])
def test_the_shipped_judge_reads_held_out_faces(kind, size_px):
    faces = draw_faces("test", 40, size_px, (kind,), print)
    scores = Scores(load_judge())
    scores.update(faces.pictures[kind], faces.parsing, faces.landmarks, faces.parameters)
    row = scores.compute()
    recorded = held_out_scores()["test"][f"{kind}_{size_px}"]
    assert row["iou"] > 0.77
    assert row["pixel_accuracy"] > 0.95
    assert row["landmark_error"] < 0.035
    assert row["attribute_error"] < 0.04
    # Well below the chance of one who always gives the same answer.
    chance = held_out_scores()["test"]["chance"]["error_by_parameter"]
    for name in (
        "yaw",
        "pitch",
        "roll",
        "smile",
        "mouth_open",
        "gaze_x",
        "skin_tone",
        "is_smiling",
        "is_glasses",
    ):
        assert row["error_by_parameter"][name] < 0.65 * chance[name], name
    assert row["style"][kind] > 0.95
    assert row["iou"] == pytest.approx(recorded["iou"], abs=0.03)


def test_the_judge_tells_defects_apart():
    """A wrong face, a blank and a mirrored one score low; a slightly blurred one keeps most of its score."""
    faces = draw_faces("test", 24, 64, ("photo",), print)
    judge = load_judge()

    def read(images):
        scores = Scores(judge)
        scores.update(images, faces.parsing, faces.landmarks, faces.parameters)
        return scores.compute()

    photos = faces.pictures["photo"]
    real = read(photos)
    small = torch.nn.functional.interpolate(photos.float(), (40, 40), mode="bilinear", antialias=True)
    blurred = read(small.round().to(torch.uint8))
    other, blank = read(photos.roll(1, 0)), read(torch.full_like(photos, 128))
    assert blurred["iou"] > 0.8 * real["iou"]
    assert other["iou"] < 0.6 * real["iou"]
    assert other["landmark_error"] > 3 * real["landmark_error"]
    assert blank["iou"] < 0.5 * real["iou"]


def test_palettes_and_regions_are_no_photos():
    faces = draw_faces("test", 16, 64, ("palette", "regions", "edges"), print)
    for images in faces.pictures.values():
        style = load_judge().read(images).style.softmax(-1).mean(0)
        assert style[STYLES.index("neither")] > 0.8
