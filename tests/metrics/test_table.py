from __future__ import annotations

import doctest
import math

import pytest

import i2i_lightning.metrics.table as table
from i2i_lightning.metrics.table import format_table, mean_and_deviation

ROWS = {
    "outputs": {"psnr": 13.9, "lpips_alex": 0.41234, "fid": 120.456, "kid": 0.0512, "kid_std": 0.0071},
    "copied input": {"psnr": 6.5, "lpips_alex": 0.7, "fid": 300.0, "kid": 0.3, "kid_std": 0.01},
    "ceiling": {"fid": 60.1, "kid": -0.0002, "kid_std": 0.003},
}


def test_rows_columns_and_arrows() -> None:
    lines = format_table(ROWS, width=200).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("  ") != []
    for head in ("PSNR dB ↑", "LPIPS alex ↓", "FID ↓", "KID ↓"):
        assert head in lines[0]
    assert "kid std" not in lines[0]
    assert "0.0512 ± 0.0071" in lines[1]
    assert lines[3].startswith("ceiling")
    assert lines[3].count("–") == 2
    assert "-0.0002 ± 0.0030" in lines[3]


def test_seeds_are_mean_and_deviation() -> None:
    seeds = [{"psnr": 20.0, "kid": 0.1, "kid_std": 0.5}, {"psnr": 23.0, "kid": 0.2, "kid_std": 0.5}]
    text = format_table({"outputs": seeds}, width=200)
    assert "21.50 ± 2.12" in text
    assert "0.1500 ± 0.0707" in text  # over seeds, not over subsets
    merged = mean_and_deviation(seeds)
    assert merged["psnr"] == pytest.approx({"mean": 21.5, "std": 1.5 * 2**0.5})
    assert mean_and_deviation(seeds[:1])["psnr"] == {"mean": 20.0}


def test_what_does_not_fit_follows_below() -> None:
    text = format_table(ROWS, width=40)
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    assert all(len(line) <= 40 for line in text.splitlines())
    assert all(block.splitlines()[1].startswith("outputs") for block in blocks)
    whole = format_table(ROWS, width=200)
    assert sorted(text.split()) == sorted([*whole.split(), *" ".join(ROWS).split() * (len(blocks) - 1)])


def test_other_metrics_and_missing_numbers() -> None:
    text = format_table(
        {"outputs": {"judge_iou": 0.5, "odd_one": 2.0, "fid": math.nan}},
        better={"judge_iou": "higher"},
        width=99,
    )
    assert "judge iou ↑" in text
    assert "odd one" in text
    assert "–" in text
    assert format_table({}, width=80).strip() == ""


def test_doctests() -> None:
    assert doctest.testmod(table).failed == 0
