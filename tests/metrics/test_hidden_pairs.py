"""Ranks and changes against what one counts by hand."""

from __future__ import annotations

import math

import torch

from i2i_lightning.metrics.hidden_pairs import change_outside, partner_ranks


def test_ranks_by_hand() -> None:
    partners = torch.tensor([10, 20, 30, 40], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    outputs = torch.tensor([11, 33, 30, 5], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    # 33 is nearest to 30, then 40, then 20, then 10; 5 is nearest to 10, 20, 30, then 40.
    assert partner_ranks(outputs, partners).tolist() == [1, 3, 1, 4]
    # Of two candidates the rival is the next image's partner: 30 against 20, 10 against 40.
    assert partner_ranks(outputs, partners, 2).tolist() == [1, 2, 1, 2]


def test_an_output_that_shows_nothing_ranks_last() -> None:
    same = torch.full((5, 3, 2, 2), 9, dtype=torch.uint8)
    assert partner_ranks(same, same).tolist() == [5] * 5


def test_change_outside_of_a_mask_by_hand() -> None:
    sources = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    pictures = sources.clone()
    pictures[0, :, 0, 0] = 100  # inside: does not count
    pictures[0, 0, 1, 1] = 30  # outside, one of three channels and of three pixels
    inside = torch.zeros(2, 2, 2, dtype=torch.bool)
    inside[0, 0, 0] = True
    inside[1] = True
    first, second = change_outside(pictures, sources, inside).tolist()
    assert math.isclose(first, 10 / 3, rel_tol=1e-6)
    assert math.isnan(second)
