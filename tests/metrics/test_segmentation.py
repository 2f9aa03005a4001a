from __future__ import annotations

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import i2i_lightning.metrics.segmentation as segmentation
from i2i_lightning.metrics.segmentation import (
    NOT_COUNTED,
    PALETTES,
    class_accuracy,
    confusion,
    find_palette,
    iou,
    mean_iou,
    nearest_colour,
    pixel_accuracy,
)
from i2i_lightning.types import UserError


def test_scores_by_hand() -> None:
    true = torch.tensor([[0, 0, 0], [1, 1, 2]])
    pred = torch.tensor([[0, 0, 1], [1, 2, 2]])
    counts = confusion(pred, true, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    values = iou(counts)
    assert values[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert math.isnan(values[3])
    assert float(mean_iou(counts)) == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert float(pixel_accuracy(counts)) == pytest.approx(4 / 6)
    assert float(class_accuracy(counts)) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_a_class_only_in_the_prediction_lowers_others_but_is_not_in_the_mean() -> None:
    counts = confusion(torch.tensor([0, 2]), torch.tensor([0, 0]), 3)
    assert iou(counts)[2] == 0
    assert float(mean_iou(counts)) == pytest.approx(0.5)
    assert float(class_accuracy(counts)) == pytest.approx(0.5)


def test_pixels_that_are_not_counted() -> None:
    pred, true = torch.tensor([0, 1, 1, 0]), torch.tensor([0, NOT_COUNTED, 1, NOT_COUNTED])
    assert confusion(pred, true, 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(RuntimeError):
        confusion(pred, torch.full((4,), 2), 2)


def test_the_nearest_colour_is_exact_to_a_level() -> None:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (2, 3, 9, 11), generator=generator, dtype=torch.uint8)
    for palette in PALETTES.values():
        pixels = rgb.permute(0, 2, 3, 1).numpy().astype(np.int64)
        colours = np.array(palette.colours)
        expected = ((pixels[..., None, :] - colours) ** 2).sum(-1).argmin(-1)
        assert np.array_equal(nearest_colour(rgb, palette.colours).numpy(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(nearest_colour(rgb, palette.colours).numpy(), expected)
    # Equally near: the first.
    assert nearest_colour(torch.tensor([1, 0, 0]).view(1, 3, 1, 1), [(0, 0, 0), (2, 0, 0)]).item() == 0


def test_colours_that_are_a_little_off_are_read_all_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    for name, palette in PALETTES.items():
        colours = torch.tensor(palette.colours)
        index = torch.arange(len(colours)).reshape(1, 1, -1)
        rgb = colours[index].movedim(-1, 1)
        off = 20 if name == "toyfaces" else 4
        near = (rgb + torch.randint(-off, off + 1, rgb.shape, generator=generator)).clamp(0, 255)
        assert torch.equal(palette.output_classes(near.to(torch.uint8)), index), name


def test_void_colours_count_in_no_target_but_in_outputs() -> None:
    palette = PALETTES["cityscapes"]
    rgb = torch.tensor([(0, 0, 0), (128, 64, 128), (2, 1, 89)], dtype=torch.uint8).T.reshape(1, 3, 1, 3)
    assert palette.target_classes(rgb).tolist() == [[[NOT_COUNTED, 0, NOT_COUNTED]]]
    output = palette.output_classes(rgb)
    assert output.tolist()[0][0][1] == 0
    assert int(output.min()) >= 0
    assert len(palette.colours) == len(palette.classes) == 19
    assert len(set(palette.colours + palette.void)) == 29


def test_palettes_by_name_and_by_colour() -> None:
    assert find_palette("facades").classes[1] == "facade"
    own = find_palette([[0, 0, 0], [255, 255, 255]])
    assert own.colours == ((0, 0, 0), (255, 255, 255))
    for wrong, message in (
        ("maps", r"palette=maps: there is facades, cityscapes, toyfaces; or give a list"),
        ([[0, 0, 0], [0, 0, 0]], "a different colour for each"),
        ([[0, 0, 0], [0, 0, 256]], r"\[0, 0, 256\] is not a colour"),
        ([[0, 0, 0], [0, 1]], r"\[0, 1\] is not a colour"),
    ):
        with pytest.raises(UserError, match=message):
            find_palette(wrong)  # type: ignore[arg-type]


def test_the_facades_palette_is_what_the_files_are_painted_in(facades: Path) -> None:
    """Every class occurs, at its very colour, and among pixels that are no border hardly anything else."""
    palette = PALETTES["facades"]
    colours = torch.tensor(palette.colours)
    files = sorted((facades / "test").glob("*.jpg"))[:30]
    maps = torch.stack([torch.from_numpy(np.asarray(Image.open(file))[:, 256:].copy()) for file in files])
    rgb = maps.permute(0, 3, 1, 2)
    index = palette.target_classes(rgb)
    far = (rgb.int() - colours[index].permute(0, 3, 1, 2)).abs().amax(1)
    assert (far > 40).float().mean() < 0.25  # borders, which JPEG smears
    for number, name in enumerate(palette.classes):
        clean = rgb.permute(0, 2, 3, 1)[(index == number) & (far <= 12)].float()
        assert len(clean) > 500, name
        assert (clean.median(0).values - colours[number]).abs().max() <= 3, name
    # An area whose 5x5 neighbourhood has one class is painted in that class's colour.
    windows = torch.nn.functional.max_pool2d
    flat = windows(index.float(), 5, 1, 2) == -windows(-index.float(), 5, 1, 2)
    assert (far[flat] <= 12).float().mean() > 0.93
    counts = confusion(index, index, 12)
    assert int(counts.sum(1).argmax()) == palette.classes.index("facade")


def test_doctests() -> None:
    assert doctest.testmod(segmentation).failed == 0
