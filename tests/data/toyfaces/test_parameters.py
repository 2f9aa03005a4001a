"""The distribution of ToyFaces is fixed: golden faces, splits, vectors and mirrors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from i2i_lightning.data.toyfaces.parameters import (
    ATTRIBUTE_NAMES,
    BEARDS,
    GLASSES,
    HAIR_STYLES,
    RANGES,
    VECTOR_NAMES,
    attributes,
    flip_vector,
    hash_uniforms,
    replace,
    sample_parameters,
    vector,
)
from i2i_lightning.types import UserError


@pytest.mark.parametrize(
    ("split", "index", "numbers", "names", "seed"),
    [
        ("train", 0, (0.458365, -0.399142, -0.481625), ("curly", "black", "none"), 1082202192),
        ("train", 3999, (0.227106, 0.712207, 0.519016), ("bob", "black", "none"), 1695608162),
        ("val", 7, (0.025738, -0.423411, -0.562557), ("long", "brown", "round"), 1528346911),
        ("test", 199, (-0.29349, 0.041156, 0.985995), ("short", "blond", "none"), 115747666),
    ],
)
def test_version_1_never_changes(split, index, numbers, names, seed):
    face = sample_parameters(split, index)
    assert (face.yaw, face.smile, face.light_x) == pytest.approx(numbers, abs=1e-5)
    assert (face.hair_style, face.hair_colour, face.glasses) == names
    assert face.texture_seed == seed


def test_a_face_depends_on_its_key_alone():
    later = [sample_parameters("train", index) for index in (5, 3, 5)]
    assert later[0] == later[2] != later[1]
    assert sample_parameters("train", 3) != sample_parameters("val", 3) != sample_parameters("test", 3)
    assert len({sample_parameters("train", index).texture_seed for index in range(500)}) == 500


def test_hash_is_uniform_and_independent():
    draws = np.stack([hash_uniforms(16, 1, 0, index) for index in range(2000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03
    correlation = np.corrcoef(draws.T) - np.eye(16)
    assert np.abs(correlation).max() < 0.1


def test_every_value_lies_in_its_range_and_every_style_occurs():
    faces = [sample_parameters("train", index) for index in range(400)]
    for name, (low, high) in RANGES.items():
        values = [getattr(face, name) for face in faces]
        assert low <= min(values)
        assert max(values) <= high
        assert max(values) - min(values) > 0.5 * (high - low)
    assert {face.hair_style for face in faces} == set(HAIR_STYLES)
    assert {face.glasses for face in faces} == set(GLASSES)
    assert {face.beard for face in faces} == set(BEARDS)
    for face in faces:
        assert all(0 < channel < 1 for channel in (*face.skin_rgb, *face.hair_rgb, *face.backdrop_rgb))


def test_vector_holds_ranges_then_attributes():
    face = sample_parameters("val", 1)
    values = vector(face)
    assert values.shape == (len(VECTOR_NAMES),)
    assert values.dtype == np.float32
    assert values[VECTOR_NAMES.index("yaw")] == pytest.approx(face.yaw)
    assert values[VECTOR_NAMES.index("skin_tone")] == pytest.approx(2 * face.skin_tone - 1)
    assert np.abs(values[: len(RANGES)]).max() <= 1
    table = attributes(face)
    assert tuple(table) == ATTRIBUTE_NAMES
    assert values[len(RANGES) :].tolist() == [float(value) for value in table.values()]


def test_attributes_follow_the_parameters():
    face = replace(sample_parameters("val", 0), hair_style="bald", glasses="sun", beard="full", smile=0.9)
    table = attributes(face)
    assert table["bald"]
    assert table["glasses"]
    assert table["sunglasses"]
    assert table["beard"]
    assert table["smiling"]
    assert not any(table[f"{colour}_hair"] for colour in ("black", "brown", "blond", "red", "grey", "dyed"))


def test_mirror_of_the_vector():
    face = sample_parameters("val", 4)
    mirrored = dataclasses.replace(
        face, yaw=-face.yaw, roll=-face.roll, gaze_x=-face.gaze_x, light_x=-face.light_x
    )
    np.testing.assert_allclose(flip_vector(vector(face)), vector(mirrored), atol=1e-6)


def test_slips_are_named():
    with pytest.raises(UserError, match=r"split='tests'.*train, val, test"):
        sample_parameters("tests", 0)
    with pytest.raises(UserError, match="version=2"):
        sample_parameters("train", 0, version=2)
    with pytest.raises(UserError, match="index=-1"):
        sample_parameters("train", -1)
    with pytest.raises(UserError, match=r"unknown face parameter smiel: choose from .*smile"):
        replace(sample_parameters("train", 0), smiel=1.0)
