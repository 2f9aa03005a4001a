"""Sizes in closed form, pixels against PIL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning.data.checks import FileProblem
from i2i_lightning.data.transforms import Geometry, one_hot, resize, scale_to_network, window
from i2i_lightning.types import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(286, 286), (64, 80), (33, 17)])
def test_eight_bits_are_resized_as_by_pil(size: tuple[int, int]) -> None:
    rgb = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    expected = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(rgb, size), np.asarray(expected))
    five = RNG.integers(0, 256, (70, 90, 5), dtype=np.uint8)
    resized = resize(five, size)
    for channel in range(5):
        grey = Image.fromarray(five[:, :, channel]).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(resized[:, :, channel], np.asarray(grey))


def test_sixteen_bits_are_resized_at_full_depth() -> None:
    # Far enough from the ends that nothing overshoots; PIL's eight-bit filter clips after each axis.
    eight = RNG.integers(100, 150, (40, 40, 3), dtype=np.uint8)
    sixteen = eight.astype(np.uint16) * 257
    at_sixteen = resize(sixteen, (25, 31))
    assert at_sixteen.dtype == np.uint16
    # PIL's eight-bit filter rounds twice, once for each axis.
    difference = np.abs(at_sixteen / 257 - resize(eight, (25, 31)).astype(float))
    assert difference.max() <= 1.01
    assert difference.mean() < 0.4
    ramp = np.arange(100, 100 + 50, dtype=np.uint16).repeat(4).reshape(50, 4, 1)
    assert len(np.unique(resize(ramp, (25, 4)))) == 25


def test_floats_stay_within_their_range() -> None:
    edge = np.where(np.arange(32) < 16, -1.0, 1.0).astype(np.float32).reshape(1, 32, 1).repeat(8, 0)
    resized = resize(edge, (8, 50))
    assert resized.dtype == np.float32
    assert resized.min() == -1
    assert resized.max() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_resized_without_inventing_ids(dtype: type) -> None:
    ids = RNG.choice([0, 3, 200], (31, 47)).astype(dtype)
    resized = resize(ids, (64, 20), labels=True)
    assert resized.dtype == dtype
    assert set(np.unique(resized)) <= {0, 3, 200}
    expected = Image.fromarray(ids.astype(np.uint8)).resize((20, 64), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resized, np.asarray(expected))


@pytest.mark.parametrize(
    ("mode", "load", "crop", "source", "training", "validation"),
    [
        ("resize_and_crop", 286, 256, (100, 300), (286, 286), (256, 256)),
        ("resize_and_crop", [143, 286], [128, 256], (600, 600), (143, 286), (128, 256)),
        ("resize_and_crop", None, 64, (100, 300), (64, 64), (64, 64)),
        ("crop", 286, 64, (100, 300), (100, 300), (100, 300)),
        ("scale_width", 200, 64, (300, 400), (150, 200), (64, 64)),
        ("scale_width", 200, [128, 192], (100, 400), (128, 200), (128, 192)),
        ("scale_shortest", 100, 64, (300, 400), (100, 133), (64, 85)),
        ("scale_shortest", [64, 128], [64, 128], (100, 100), (128, 128), (128, 128)),
        ("scale_width", 200, None, (300, 400), (150, 200), (150, 200)),
        ("none", 286, 256, (101, 303), (100, 304), (100, 304)),
    ],
)
def test_sizes(
    mode: str, load: object, crop: object, source: tuple, training: tuple, validation: tuple
) -> None:
    geometry = Geometry(mode, load, crop)  # type: ignore[arg-type]
    assert geometry.cached_size(*source, training=True) == training
    assert geometry.cached_size(*source, training=False) == validation


def test_none_rounds_to_the_multiple_asked_for() -> None:
    assert Geometry("none", None, None, multiple_px=32).cached_size(100, 33, training=True) == (96, 32)
    assert Geometry("none", None, None, multiple_px=1).cached_size(101, 33, training=True) == (101, 33)


def test_crop_of_a_smaller_picture_is_a_problem() -> None:
    with pytest.raises(FileProblem, match=r"smaller than data.crop_px=64"):
        Geometry("crop", None, 64).cached_size(50, 300, training=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resize_and_krop", 286, 256),
            r"data.preprocess=resize_and_krop: choose .*did you mean resize_and_crop",
        ),
        (("resize_and_crop", 128, 256), r"data.crop_px=256 is larger than data.load_px=128"),
        (("scale_width", [300, 128], [64, 256]), r"data.crop_px=\[64,256\] is larger"),
        (("resize_and_crop", 0, 256), r"data.load_px=0"),
        (("resize_and_crop", 286, [1, 2, 3]), r"data.crop_px=\[1, 2, 3\]"),
        (("scale_shortest", None, None), r"give data.load_px or data.crop_px"),
        (("none", None, None, 0), r"data.multiple_px=0"),
    ],
)
def test_impossible_sizes(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Geometry(*arguments)


def test_window_reaches_every_place_and_no_further() -> None:
    places = {
        window((10, 12), (8, 8), (u, v))[:2] for u in np.arange(0, 1, 0.01) for v in np.arange(0, 1, 0.01)
    }
    assert places == {(top, left) for top in range(3) for left in range(5)}
    assert window((10, 12), (8, 8), (1 - 1e-16, 1 - 1e-16))[:2] == (2, 4)
    assert window((10, 12), (8, 8), None) == (1, 2, 8, 8)
    assert window((10, 12), None, (0.5, 0.5)) == (0, 0, 10, 12)


def test_pixels_become_the_usual_floats() -> None:
    eight = torch.arange(256, dtype=torch.uint8)
    expected = (eight.double() / 255 - 0.5) / 0.5
    floats = scale_to_network(eight)
    assert floats.dtype == torch.float32
    assert (floats - expected).abs().max() <= 3e-8
    assert floats[0] == -1
    assert floats[255] == 1
    assert floats.max() == 1
    sixteen = torch.from_numpy(np.arange(65536).astype(np.uint16))
    floats = scale_to_network(sixteen)
    expected = torch.arange(65536, dtype=torch.float64) / 32767.5 - 1
    assert (floats - expected).abs().max() <= 3e-8
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.unique(floats).numel() == 65536
    passed_on = torch.linspace(-1, 1, 5)
    assert torch.equal(scale_to_network(passed_on), passed_on)
    with pytest.raises(ValueError, match="int64"):
        scale_to_network(torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_hot(dtype: type) -> None:
    ids = torch.from_numpy(RNG.integers(0, 7, (2, 5, 6)).astype(dtype))
    encoded = one_hot(ids, 7)
    assert encoded.shape == (2, 7, 5, 6)
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded.argmax(1).to(torch.int32), ids.to(torch.int32))
    assert torch.equal(encoded.sum(1), torch.ones(2, 5, 6))
