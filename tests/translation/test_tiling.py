"""Tiles: they cover, their weights add up to one, and the measure of seams sees seams."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from i2i_lightning.translation.tiling import plan, seam_steps, translate_tiles

CASES = [
    # height, width, tile_px, multiple_px
    (64, 64, 64, 4),  # one tile
    (68, 64, 64, 4),  # a second tile that begins almost where the first does
    (200, 300, 64, 4),
    (256, 1024, 128, 32),
    (1024, 768, 300, 256),  # a tile is two multiples at least
    (77, 91, 16, 1),
    (12, 500, 64, 4),  # lower than a tile
]


@pytest.mark.parametrize(("height", "width", "tile_px", "multiple_px"), CASES)
def test_weights_add_up_to_one(height: int, width: int, tile_px: int, multiple_px: int) -> None:
    tiling = plan(height, width, tile_px, multiple_px)
    for axis, length in ((tiling.rows, height), (tiling.columns, width)):
        total = torch.zeros(length)
        for number, start in enumerate(axis.starts):
            assert start % multiple_px == 0
            weight = axis.weight(number)
            assert weight.min() >= 0
            total[start : start + axis.tile_px] += weight
            # The outermost pixels of a tile count only at the image's own edge.
            assert number == 0 or weight[0] == 0
            assert number == len(axis.fades) or weight[-1] == 0
        assert axis.tile_px in (length,) or axis.tile_px == max(tile_px // multiple_px, 2) * multiple_px
        assert axis.starts[-1] + axis.tile_px == length
        torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("height", "width", "tile_px", "multiple_px"), CASES)
def test_a_pixelwise_function_is_not_changed(
    height: int, width: int, tile_px: int, multiple_px: int, batch_size: int
) -> None:
    image = torch.rand(2, height, width)
    tiling = plan(height, width, tile_px, multiple_px)
    strips: list[Tensor] = []
    seen: list[tuple[int, int]] = []

    def read(corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return image[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]

    def run(tiles: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        assert len(tiles) == len(corners) <= batch_size
        seen.extend(corners)
        return tiles**2

    def write(top: int, rows: Tensor) -> None:
        assert top == sum(strip.shape[1] for strip in strips)
        strips.append(rows.clone())

    translate_tiles(tiling, read, run, write, batch_size)
    assert len(seen) == len(set(seen)) == tiling.num_tiles
    torch.testing.assert_close(torch.cat(strips, 1), image**2)


def test_what_a_tile_does_at_its_edges_is_thrown_away() -> None:
    tiling = plan(256, 256, 128, 4)
    overlap = 128 // 2
    strips: list[Tensor] = []

    def run(tiles: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        (top, left), tiles = corners[0], tiles.clone()
        spoilt = overlap // 4
        if top > 0:
            tiles[..., :spoilt, :] = 9
        if left > 0:
            tiles[..., :spoilt] = 9
        if top < 128:
            tiles[..., -spoilt:, :] = 9
        if left < 128:
            tiles[..., -spoilt:] = 9
        return tiles

    translate_tiles(tiling, lambda _, size: torch.zeros(1, *size), run, lambda _, rows: strips.append(rows))
    assert torch.cat(strips, 1).abs().max() == 0


def test_seams_are_seen_and_texture_is_not() -> None:
    tiling = plan(256, 256, 128, 4)
    smooth = torch.linspace(0, 1, 256).expand(3, 256, 256) + torch.randn(3, 256, 256) * 0.1
    clean = seam_steps(smooth, tiling)
    assert clean.border < 1.5 * clean.inside
    border = tiling.columns.borders[1]
    seam = smooth.clone()
    seam[:, :, border:] += 0.1
    assert seam_steps(seam, tiling).border > clean.border + 0.05
    elsewhere = smooth.clone()
    elsewhere[:, 100:, :] += 0.1
    assert 100 not in tiling.rows.borders
    assert seam_steps(elsewhere, tiling).inside > clean.inside + 0.05


def test_a_seam_along_part_of_a_border_is_seen() -> None:
    tiling = plan(256, 256, 128, 4)
    image = torch.zeros(1, 256, 256)
    image[:, 64:128, tiling.columns.borders[0] :] = 0.05
    assert seam_steps(image, tiling).border == pytest.approx(0.05)
