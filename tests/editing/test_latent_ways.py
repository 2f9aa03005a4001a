"""Lists of numbers, style mixing and interpolation: what edits and samples share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from i2i_lightning.editing.interpolation import lerp, slerp
from i2i_lightning.editing.mixing import mix, rows_of
from i2i_lightning.editing.ranges import whole_numbers
from i2i_lightning.networks.stylegan1 import StyleGAN1Generator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (7, [7]),
        ("0-3", [0, 1, 2, 3]),
        ("1,5,7-9", [1, 5, 7, 8, 9]),
        ("3, 1,3", [3, 1, 3]),
        (["0-2", 9], [0, 1, 2, 9]),
        ("007", [7]),
        ("4-4", [4]),
    ],
)
def test_lists_of_numbers(value: Any, numbers: list[int]) -> None:
    assert whole_numbers(value, "seeds", 99) == numbers


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("abc", "seeds=abc: give seeds from 0 up and ranges of them: 0-35, or 1,5,7-9"),
        ("-3", "seeds=-3: give"),
        ("1,,2", "seeds=1,,2: give"),
        ("1.5", "seeds=1.5: give"),
        (1.5, "seeds=1.5: give"),
        (True, "seeds=True: give"),
        ("", "seeds=: give"),
        ([], "seeds=[]: give"),
        ({"a": 1}, "give"),
        ("9-7", "seeds=9-7: 9-7 counts down; write 7-9"),
        ("5-5000000000", "5000000000 is too large; there are seeds from 0 to 4294967295"),
        ("0-4294967295", "more than 1,000,000 seeds"),
        (",".join(["0-600000"] * 2), "more than 1,000,000 seeds"),
        ("٣", "give"),
    ],
)
def test_other_things_are_refused(value: Any, says: str) -> None:
    with pytest.raises(UserError) as slip:
        whole_numbers(value, "seeds", 2**32 - 1, "seeds")
    assert says in str(slip.value)
    assert len(str(slip.value)) < 200
    assert "\n" not in str(slip.value)


def test_styles_are_told_by_the_size_of_their_layers() -> None:
    two = StyleGAN2Generator(64, z_dim=4, w_dim=4, channel_base=64, channel_max=4).row_names
    assert [rows_of(name, two) for name in ("coarse", "middle", "fine")] == [
        [0, 1, 2],
        [3, 4, 5, 6],
        [7, 8, 9],
    ]
    one = StyleGAN1Generator(64, z_dim=4, w_dim=4, channel_base=64, channel_max=4).row_names
    assert [rows_of(name, one) for name in ("coarse", "middle", "fine")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert rows_of("fine,0,1-2,2", two) == [0, 1, 2, 7, 8, 9]
    assert rows_of(["coarse", 9], two) == [0, 1, 2, 9]
    assert rows_of(5, two) == [5]


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("rough", "mixing.layers=rough: give coarse, middle, fine, or rows such as 0-7"),
        ("0-8", "mixing.layers=0-8: 8 is too large; there are rows from 0 to 7"),
        ("fine", "mixing.layers=fine: fine styles begin at 64 px; this generator ends at 32 px"),
    ],
)
def test_rows_that_are_not_there(layers: str, says: str) -> None:
    names = StyleGAN2Generator(32, z_dim=4, w_dim=4, channel_base=64, channel_max=4).row_names
    with pytest.raises(UserError) as slip:
        rows_of(layers, names, "mixing.layers")
    assert str(slip.value) == says


def test_mixing_takes_the_rows_and_leaves_its_arguments() -> None:
    base, style = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    kept = base.clone()
    mixed = mix(base, style, [0, 3])
    assert torch.equal(mixed[:, [0, 3]], style[:, [0, 3]])
    assert torch.equal(mixed[:, [1, 2, 4]], base[:, [1, 2, 4]])
    assert torch.equal(base, kept)


def test_great_arcs() -> None:
    start = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    end = torch.tensor([[0.0, 1.0], [-2.0, 0.0]])
    third = slerp(start, end, 1 / 3)
    expected = torch.tensor([[math.cos(math.pi / 6), 0.5], [-1.0, 2 * math.cos(math.pi / 6)]])
    torch.testing.assert_close(third, expected)
    torch.testing.assert_close(slerp(start, end, torch.tensor([1 / 3, 0.0]))[0], expected[0])


@pytest.mark.parametrize("way", [slerp, lerp])
def test_ends_are_the_points_themselves(way: Any) -> None:
    start, end = torch.randn(6, 1, 8, 8), torch.randn(6, 1, 8, 8)
    assert torch.equal(way(start, end, 0), start)
    assert torch.equal(way(start, end, 1), end)
    assert torch.equal(way(start, end, torch.tensor([0, 1, 0, 1, 0, 1.0]))[::2], start[::2])
    assert way(start, start, 0.3).isfinite().all()
    assert way(start, -start, 0.3).isfinite().all()
    torch.testing.assert_close(way(start, start, 0.3), start)


def test_arcs_keep_the_length_of_normal_vectors() -> None:
    start, end = torch.randn(2, 64, 512, generator=torch.Generator().manual_seed(0))
    arc, line = slerp(start, end, 0.5).square().mean(), lerp(start, end, 0.5).square().mean()
    assert abs(arc - 1) < 0.05
    assert abs(line - 0.5) < 0.05
