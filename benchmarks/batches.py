"""Whether a batch of images ends where each would alone: every preset, in double and in single precision.

    python -m benchmarks.batches --json benchmarks/results/batches_toy_cpu.json

Images share nothing in a search but the arithmetic of its kernels, which add in another order for another
batch. In double precision that is all but invisible. In single precision a difference in the last digit grows
from step to step, as it does between two machines, and Adam carries it over where a gradient is all but zero.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.inversion import PRESETS, faces, preset
from benchmarks.train_step import machine
from i2i_lightning.checkpoints import load_style_generator
from i2i_lightning.methods.inversion import Embedding, Targets, embed
from i2i_lightning.metrics.image import psnr

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32}


def compare(name: str, precision: str, steps: int, number: int) -> dict[str, Any]:
    """Return by how much a batch of ``number`` images differs from the single ones at most.

    Args:
        name: The preset.
        precision: ``fp64`` or ``fp32``.
        steps: The most of each stage; nobody stops early.
        number: Images.
    """
    stages, loss, start = preset(name)
    cut = {
        key: replace(stage, steps=min(steps, stage.steps), patience=None, stop_at={})
        for key, stage in stages.items()
    }
    dtype = PRECISIONS[precision]
    generator = load_style_generator("embedded").to(dtype)
    if loss.perceptual is not None:
        loss.perceptual.to(dtype)
    targets = faces(number, generator.size_px)
    real = targets.real.to(dtype)

    def found(first: int, last: int) -> Embedding:
        some = Targets(real[first:last], list(targets.names)[first:last])
        return embed(generator, some, cut, loss, start)

    together, alone = found(0, number), [found(index, index + 1) for index in range(number)]
    w_plus, image = (torch.cat([getattr(one, key) for one in alone]) for key in ("w_plus", "image"))
    row = {
        "w_plus": float((together.w_plus - w_plus).abs().max()),
        "picture_levels": float((together.image - image).abs().max()) * 127.5,
        "psnr_db": float((psnr(together.image, real) - psnr(image, real)).abs().max()),
        "steps": {key: stage.steps for key, stage in cut.items()},
    }
    if together.noise is not None:
        pairs = [
            (maps, torch.cat([one.noise[place] for one in alone if one.noise is not None]))
            for place, maps in enumerate(together.noise)
        ]
        row["noise"] = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
    return row


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 100], help="the most of each stage")
    parser.add_argument("--number", type=int, default=3, help="images in the batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    rows: list[dict[str, Any]] = []
    print("| preset | steps | precision | w_plus | noise, of its largest | picture, of 255 | PSNR, dB |")
    print(f"|{' --- |' * 7}")
    for name in options.presets:
        for steps in options.steps:
            for precision in PRECISIONS:
                row = compare(name, precision, steps, options.number)
                rows.append({"preset": name, "precision": precision, **row})
                taken = " + ".join(map(str, row["steps"].values()))
                noise = f"{row['noise']:.1e}" if "noise" in row else ""
                print(
                    f"| `{name}` | {taken} | {precision} | {row['w_plus']:.1e} | {noise} "
                    f"| {row['picture_levels']:.1e} | {row['psnr_db']:.1e} |",
                    flush=True,
                )
    if options.json is not None:
        found = {"machine": machine(), "images": options.number, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
