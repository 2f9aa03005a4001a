"""Folders as runs leave them, written by hand: with everything, or half of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from i2i_lightning.callbacks.previews import draw_grid, tile_notes

MakeRun = Callable[..., Path]
PX = 16


def report(iou: float, sharpness: float, pixel_error: float) -> dict[str, Any]:
    return {
        "task": "regions_to_photo",
        "iou_ratio": iou / 0.8,
        "judge": {
            "outputs": {"iou": iou, "landmark_error": 0.05, "photo_probability": 0.5},
            "real": {"iou": 0.8, "landmark_error": 0.02, "photo_probability": 1.0},
            "copied_input": {"iou": 0.7},
        },
        "iou_by_class": {"outputs": {"skin": 0.1}},
        "pixel_error": {
            "outputs": {"of_255": pixel_error, "of_minus_1_to_1": pixel_error / 127.5},
            "copied_input": {"of_255": 24.0, "of_minus_1_to_1": 24 / 127.5},
        },
        "sharpness": {"outputs": sharpness, "copied_input": 1.7},
    }


def write_grid(
    path: Path, level: int, rows: int = 3, columns: tuple[str, ...] = ("input", "output", "target")
) -> None:
    """Draw previews whose outputs have one level, and inputs and targets that of their row."""
    samples = [
        {
            column: np.full((PX, PX, 3), level if column.startswith("output") else 40 + row, np.uint8)
            for column in columns
        }
        for row in range(rows)
    ]
    grid = draw_grid(samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, format="PNG", pnginfo=tile_notes(grid, [f"face_{row}.png" for row in range(rows)]))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        name: str,
        *overrides: str,
        values: tuple[float, ...] = (0.5, 0.4),
        epochs: int | None = None,
        figures: dict[str, Any] | None = None,
        level: int | None = 100,
        finished: bool = True,
        config: dict[str, Any] | None = None,
    ) -> Path:
        """Write a run that validated ``values`` (``val/l1``), with a batch logged before each."""
        folder = tmp_path / "sweep" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
        seed = next((int(word.split("=")[1]) for word in overrides if word.startswith("seed=")), 0)
        made = {
            "name": "toy",
            "seed": seed,
            "trainer": {"max_epochs": epochs or len(values)},
            "loss": {"lambda_l1": 100.0},
            **(config or {}),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(made))
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**made, "data": {"seed": "${seed}"}}))
        lines = ["step,epoch,train/generator/l1,val/l1"]
        for epoch, value in enumerate(values):
            lines += [f"{10 * epoch + 4},{epoch},{value + 0.1},", f"{10 * epoch + 9},{epoch},,{value}"]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        if figures is not None:
            (folder / "report.json").write_text(json.dumps(figures))
        if level is not None:
            write_grid(folder / "images" / f"epoch_{len(values):04d}.png", level)
        if finished:
            (folder / "finished.json").write_text(json.dumps({"epochs": len(values)}))
            (folder / "index.html").write_text("<p class='state finished'>finished</p>")
        return folder

    return make
