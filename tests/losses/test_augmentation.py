"""Augmentations keep their strengths, move images as wholes, and let gradients through."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.losses.augmentation import (
    AUGMENTATIONS,
    augment,
    check_augmentations,
    cut_out,
    jitter_colour,
    translate,
)
from i2i_lightning.types import UserError


def test_colours_stay_within_their_strengths() -> None:
    torch.manual_seed(0)
    images = torch.rand(500, 3, 4, 6, dtype=torch.float64) * 2 - 1
    changed = jitter_colour(images)
    brightness = (changed - images).mean((1, 2, 3))
    assert -0.5 <= brightness.min() < -0.4
    assert 0.4 < brightness.max() <= 0.5
    # The grey image's spread is scaled by the contrast, the distance from grey by the saturation as well.
    grey, new_grey = images.mean(1), changed.mean(1)
    contrast = new_grey.flatten(1).std(1) / grey.flatten(1).std(1)
    assert 0.5 <= contrast.min() < 0.55
    assert 1.45 < contrast.max() <= 1.5
    colour = (changed - new_grey[:, None]).flatten(1).std(1) / (images - grey[:, None]).flatten(1).std(1)
    saturation = colour / contrast
    assert 0 <= saturation.min() < 0.1
    assert 1.9 < saturation.max() <= 2


def test_translation_moves_by_whole_pixels_and_fills_with_zeros() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 2, 16, 32) + 1
    moved = translate(images)
    shifts = set()
    for image, other in zip(images, moved, strict=True):
        rows, columns = (other != 0).any(0).any(1).nonzero()[:, 0], (other != 0).any(0).any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        height, width = len(rows), len(columns)
        down = top if top else height - 16
        across = left if left else width - 32
        shifts.add((down, across))
        part = image[:, max(0, -down) : 16 - max(0, down), max(0, -across) : 32 - max(0, across)]
        assert torch.equal(other[:, top : top + height, left : left + width], part)
    assert {down for down, _ in shifts} == set(range(-2, 3))
    assert {across for _, across in shifts} == set(range(-4, 5))


@pytest.mark.parametrize("side", [15, 16])
def test_cutout_hides_one_box(side: int) -> None:
    torch.manual_seed(0)
    images = torch.ones(300, 3, side, 12)
    hidden = cut_out(images) == 0
    assert (hidden[:, 0] == hidden[:, 2]).all()
    heights, widths = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert (hidden[:, 0].sum((1, 2)) == heights * widths).all()
    assert heights.max() == round(side / 2)
    assert heights.min() == round(side / 2) // 2  # its middle may lie on the edge
    assert widths.max() == 6


def test_all_are_differentiable_and_keep_the_shape() -> None:
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    changed = augment(images, AUGMENTATIONS)
    assert changed.shape == images.shape
    changed.square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.1


def test_nothing_asked_for_is_nothing_done() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert augment(images, ()) is images


def test_unknown_names() -> None:
    assert check_augmentations(["cutout"], "key") == ("cutout",)
    with pytest.raises(UserError, match="key: no augmentation flip; there is color, translation, cutout"):
        check_augmentations(["flip"], "key")
