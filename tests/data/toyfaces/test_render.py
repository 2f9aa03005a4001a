"""Everything drawn of a face agrees with everything else, at every size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from i2i_lightning.data.toyfaces.geometry import (
    CLASS_NAMES,
    CLASS_PALETTE,
    FIVE_POINTS,
    FLIPPED_INSTANCES,
    FLIPPED_LANDMARKS,
    INSTANCE_NAMES,
    LANDMARK_NAMES,
    PARTS,
    build_geometry,
    flip_landmarks,
    landmarks,
)
from i2i_lightning.data.toyfaces.parameters import attributes, replace, sample_parameters
from i2i_lightning.data.toyfaces.render import KINDS, paint, render
from i2i_lightning.types import UserError

FACES = [sample_parameters("val", index) for index in range(12)]


def mirror(face):
    return dataclasses.replace(
        face,
        yaw=-face.yaw,
        roll=-face.roll,
        gaze_x=-face.gaze_x,
        light_x=-face.light_x,
        head_x=-face.head_x,
        hair_part=-face.hair_part,
    )


@pytest.mark.parametrize("size_px", [32, 64, 128])
def test_shapes_types_and_ranges(size_px):
    drawn = render(FACES[0], size_px)
    assert set(drawn) == set(KINDS)
    for kind, image in drawn.items():
        channels = {"parsing": (), "instances": (), "edges": (1,)}.get(kind, (3,))
        assert image.shape == (*channels, size_px, size_px)
        assert image.dtype == np.uint8
    assert drawn["parsing"].max() < len(CLASS_NAMES)
    assert drawn["instances"].max() < len(INSTANCE_NAMES)
    assert drawn["photo"].std() > 20


def test_the_same_face_is_drawn_the_same():
    for kind, image in render(FACES[1], 64).items():
        np.testing.assert_array_equal(image, render(sample_parameters("val", 1), 64)[kind])


def test_kinds_can_be_drawn_alone():
    alone = render(FACES[2], 48, ["photo"])
    assert list(alone) == ["photo"]
    np.testing.assert_array_equal(alone["photo"], render(FACES[2], 48)["photo"])


def test_instances_refine_the_parsing_and_regions_fill_them():
    class_of = dict({(instance, kind) for kind, instance in PARTS.values()} | {(0, 0)})
    for face in FACES:
        drawn = render(face, 96)
        expected = np.vectorize(class_of.get)(drawn["instances"])
        np.testing.assert_array_equal(drawn["parsing"], expected)
        np.testing.assert_array_equal(drawn["palette"], paint(drawn["parsing"]))
        for name in ("background", "face", "neck", "cloth", "nose", "mouth", "eye_left", "brow_right"):
            inside = drawn["instances"] == INSTANCE_NAMES.index(name)
            if inside.any():
                assert len(np.unique(drawn["regions"][:, inside], axis=1).T) == 1, name


def test_cartoon_is_the_regions_away_from_lines():
    """Far inside a part the cartoon shows the part's one colour, so both come from the same outline."""
    for face in FACES[:6]:
        drawn = render(face, 128, ["cartoon", "regions", "parsing", "edges"])
        for part in ("cloth", "neck"):
            if part == "cloth" and face.clothes in ("stripes", "shirt"):
                continue
            inside = (drawn["parsing"] == CLASS_NAMES.index(part)) & (drawn["edges"][0] == 255)
            for _ in range(2):  # Two pixels away from every border.
                inside = inside & np.roll(inside, 1, 0) & np.roll(inside, -1, 0)
                inside = inside & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
            difference = drawn["cartoon"].astype(int)[:, inside] - drawn["regions"].astype(int)[:, inside]
            assert np.abs(difference).max(initial=0) <= 1


def test_outlines_of_the_photo_are_those_of_the_parsing():
    """Backdrop and cloth differ in colour: the photo's step lies where the parsing's does, to a pixel."""
    face = replace(
        FACES[0],
        cloth_rgb=(0.05, 0.05, 0.05),
        backdrop_rgb=(0.9, 0.9, 0.9),
        backdrop="studio",
        clothes="crew",
    )
    drawn = render(face, 128, ["photo", "parsing"])
    column = 6
    cloth = np.flatnonzero(drawn["parsing"][:, column] == CLASS_NAMES.index("cloth"))
    step = np.abs(np.diff(drawn["photo"][:, :, column].astype(int).mean(0)))
    assert abs(int(step.argmax()) + 1 - int(cloth[0])) <= 1


def test_attributes_are_what_the_picture_shows():
    for index in range(60):
        face = sample_parameters("test", index)
        table = attributes(face)
        present = set(np.unique(render(face, 64, ["instances"])["instances"]).tolist())
        assert (INSTANCE_NAMES.index("hair") in present) == (not table["bald"])
        assert (INSTANCE_NAMES.index("glasses") in present) == table["glasses"]
        assert (INSTANCE_NAMES.index("beard") in present) == (table["beard"] or table["moustache"])


@pytest.mark.parametrize("index", range(6))
def test_resolution_changes_nothing_but_the_sampling(index):
    face = FACES[index]
    small, large = render(face, 64), render(face, 192)
    # The middle of a 3x3 block of pixels is the centre of the larger pixel.
    for kind in ("parsing", "instances"):
        assert (small[kind] != large[kind][1::3, 1::3]).mean() < 1e-3
    for kind in ("photo", "cartoon"):
        averaged = large[kind].reshape(3, 64, 3, 64, 3).mean((2, 4))
        assert np.abs(averaged - small[kind]).mean() < 3.0


def test_mirror():
    for index in range(40):
        face = sample_parameters("val", index)
        # Scalloped and wavy outlines are drawn by a seed, which has no mirror image.
        if face.hair_style in ("bald", "buzz", "short", "bun") and not face.fringe:
            a, b = (
                render(face, 96, ["parsing", "instances"]),
                render(mirror(face), 96, ["parsing", "instances"]),
            )
            assert (a["parsing"][:, ::-1] != b["parsing"]).mean() < 1e-3
            relabelled = np.array(FLIPPED_INSTANCES)[a["instances"]][:, ::-1]
            assert (relabelled != b["instances"]).mean() < 1e-3
        np.testing.assert_allclose(flip_landmarks(landmarks(face)), landmarks(mirror(face)), atol=1e-5)
    points = landmarks(FACES[0])
    np.testing.assert_allclose(flip_landmarks(flip_landmarks(points)), points, atol=1e-6)
    assert [LANDMARK_NAMES[i] for i in FLIPPED_LANDMARKS][:2] == ["jaw_8", "jaw_7"]


def test_landmarks_lie_on_their_parts():
    checked = 0
    for index in range(40):
        face = sample_parameters("test", index)
        if face.glasses == "sun" or face.hair_style in ("long", "bob", "curly") or face.eye_open < 0.5:
            continue
        points = dict(zip(LANDMARK_NAMES, landmarks(face), strict=True))
        size_px = 256
        classes = render(face, size_px, ["instances"])["instances"]

        def at(name, points=points, classes=classes, size_px=size_px):
            x, y = np.clip((points[name] * size_px).astype(int), 0, size_px - 1)
            return INSTANCE_NAMES[classes[y, x]]

        assert at("pupil_left") == "eye_left"
        assert at("pupil_right") == "eye_right"
        assert at("nose_tip") in ("nose", "glasses")
        mouth = 0.5 * (points["mouth_top"] + points["mouth_bottom"])
        x, y = (mouth * size_px).astype(int)
        assert INSTANCE_NAMES[classes[y, x]] in ("mouth", "nose")
        checked += 1
    assert checked >= 8
    assert set(FIVE_POINTS) <= set(LANDMARK_NAMES)


def test_jaw_lies_on_the_outline():
    for face in FACES:
        geometry = build_geometry(face, 128)
        for x, y in landmarks(face)[:9]:
            column, row = int(x * 128), int(y * 128)
            assert abs(geometry.distance["face"][row, column]) < 1.5 * geometry.pixel


def test_photo_is_not_determined_by_the_parsing():
    face = FACES[3]
    other = replace(face, light_x=-face.light_x, skin_rgb=(0.4, 0.26, 0.2), cloth_rgb=(0.1, 0.5, 0.2))
    a, b = render(face, 64, ["photo", "parsing"]), render(other, 64, ["photo", "parsing"])
    np.testing.assert_array_equal(a["parsing"], b["parsing"])
    assert np.abs(a["photo"].astype(int) - b["photo"]).mean() > 8


def test_palette_colours_are_far_apart():
    palette = np.array(CLASS_PALETTE, dtype=float)
    distances = np.linalg.norm(palette[:, None] - palette, axis=-1) + 1e9 * np.eye(len(palette))
    assert distances.min() > 60
    assert len(palette) == len(CLASS_NAMES) == 11


def test_slips_are_named():
    with pytest.raises(UserError, match=r"cannot draw sketch: choose from .*photo"):
        render(FACES[0], 64, ["sketch"])
    with pytest.raises(UserError, match="size_px=4"):
        render(FACES[0], 4)
    with pytest.raises(UserError, match="parsing index 11"):
        paint(np.full((2, 2), 11, np.uint8))
