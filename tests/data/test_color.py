"""Lab against published values, and there and back."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.data.color import lab_to_rgb, rgb_to_lab


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
    ],
)
def test_known_colours(rgb, lab):
    values = rgb_to_lab(torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(values, torch.tensor(lab, dtype=torch.float64), atol=0.02, rtol=0)


def test_there_and_back():
    rgb = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float() / 255
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=2e-4, rtol=0)


def test_impossible_colours_are_clamped():
    rgb = lab_to_rgb(torch.tensor([50.0, 110.0, -110.0]).view(1, 3, 1, 1))
    assert rgb.min() >= 0
    assert rgb.max() <= 1
