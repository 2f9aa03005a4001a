"""The embedded generator: how its distance to real faces falls, and the file that is shipped.

    python -m benchmarks.style_generator curve RUN --epochs 1 4 28 --output curve.json
    python -m benchmarks.style_generator ship RUN GENERATOR.safetensors --curve curve.json
    python -m benchmarks.style_generator compare RUN embedded
    python -m benchmarks.style_generator samples embedded docs/stylegan2_toy.png

RUN is a run folder of ``i2i-train experiment=stylegan2_toy``. Distances are those of the judge's features
(metrics/judge_distance.py) between as many samples as unseen faces, photos of the test split. ``compare``
says whether a rerun came to the same numbers: those of another run's kept checkpoints, or of a generator.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.train_step import machine
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.checkpoints.style.load import open_style
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesPictures
from i2i_lightning.metrics.judge_distance import JudgeFeatures, judge_distance
from i2i_lightning.networks.style import StyleGenerator

SUBSET, SUBSETS = 500, 50
KEPT = ("state_dict", "optimizer_states")


def averaged(path: Path) -> tuple[StyleGenerator, int]:
    """Return the averaged generator of a checkpoint, and the images that it had seen."""
    generator, loaded = open_style(path).generator()
    assert loaded.averaged
    assert loaded.provenance is not None
    return generator, int(loaded.provenance["images_seen"])


@torch.no_grad()
def samples(generator: StyleGenerator, number: int, seed: int = 0, truncation: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(number, generator.z_dim, generator=rng)
    return torch.cat([generator(part, truncation=truncation).clamp(-1, 1) for part in z.split(100)])


def faces(number: int, size_px: int) -> Tensor:
    pictures = ToyFacesPictures(ToyFaces("test", size_px, (), number), "photo")
    return torch.stack([torch.from_numpy(pictures[index][0]) for index in range(number)])


def curve(run: Path, epochs: list[int], number: int) -> dict[str, Any]:
    reader = JudgeFeatures()
    points: list[dict[str, Any]] = []
    real: Tensor | None = None
    for epoch in epochs:
        generator, images = averaged(run / "checkpoints" / f"epoch_{epoch:04d}.ckpt")
        real = faces(2 * number, generator.size_px) if real is None else real
        mean, deviation = judge_distance(
            samples(generator, number), real[:number], SUBSET, SUBSETS, 0, reader
        )
        points.append({"epoch": epoch, "kimg": images / 1000, "distance": mean, "deviation": deviation})
        print(f"epoch {epoch:3d}  {images / 1000:6.1f} kimg  {mean:.4f} ± {deviation:.4f}", flush=True)
    assert real is not None
    floor = judge_distance(real[number:], real[:number], SUBSET, SUBSETS, 0, reader)
    print(f"other real faces        {floor[0]:.4f} ± {floor[1]:.4f}")
    return {
        "machine": machine(),
        "protocol": f"{reader.protocol}; {number} samples, psi 1, against {number} faces of the test split; "
        f"mean and deviation over {SUBSETS} subsets of {SUBSET}",
        "points": points,
        "other_real_faces": {"distance": floor[0], "deviation": floor[1]},
    }


def ship(run: Path, output: Path, epoch: int, scores: dict[str, Any]) -> None:
    from i2i_lightning.checkpoints import save_style_generator
    from i2i_lightning.checkpoints.style.native import AVERAGED

    generator, images = averaged(run / "checkpoints" / f"epoch_{epoch:04d}.ckpt")
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    about = {
        "command": "i2i-train experiment=stylegan2_toy",
        "data": f"ToyFaces photos, version 1, train split, {data['num_train']} faces, mirrored at random",
        "kimg": images / 1000,
        "scores": scores,
        "licence": "Apache-2.0",
        AVERAGED: True,
    }
    save_style_generator(output, generator, about)
    print(f"{output}: {output.stat().st_size / 2**20:.2f} MiB")


def compare(run: Path, other: str) -> bool:
    """Print, and return, whether a run ends in the generator ``other``, or has the numbers of another run."""
    if not Path(other, "checkpoints").is_dir():
        mine, theirs = (open_style(each).generator()[0].fingerprint() for each in (run, other))
        print(f"{run}: {mine}\n{other}: {theirs}")
        return mine == theirs
    kept, same = sorted((run / "checkpoints").glob("epoch_*.ckpt")), True
    if not kept:
        raise SystemExit(f"{run}: no epoch_*.ckpt in its checkpoints/")
    for path in kept:
        both = [read_checkpoint(folder / "checkpoints" / path.name) for folder in (run, Path(other))]
        left, right = (tensors({key: held[key] for key in KEPT}) for held in both)
        differ = [name for name in {**left, **right} if not equal(left.get(name), right.get(name))]
        same = same and not differ
        told = f", {differ[0]} the first" if differ else ""
        print(f"{path.name}: {len(left)} tensors, {len(differ)} differ{told}")
    return same


def tensors(held: Any, name: str = "") -> dict[str, Tensor]:
    """Return every tensor within ``held`` by its path."""
    if isinstance(held, Tensor):
        return {name: held}
    items = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
    return {path: value for key, part in items for path, value in tensors(part, f"{name}/{key}").items()}


def equal(left: Tensor | None, right: Tensor | None) -> bool:
    return left is not None and right is not None and torch.equal(left, right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("curve")
    one.add_argument("run", type=Path)
    one.add_argument("--epochs", type=int, nargs="+", required=True)
    one.add_argument("--number", type=int, default=2000)
    one.add_argument("--output", type=Path)
    two = commands.add_parser("ship")
    two.add_argument("run", type=Path)
    two.add_argument("output", type=Path)
    two.add_argument("--epoch", type=int, required=True)
    two.add_argument("--curve", type=Path, required=True)
    three = commands.add_parser("samples")
    three.add_argument("generator", help="a file, or embedded")
    three.add_argument("output", type=Path)
    four = commands.add_parser("compare")
    four.add_argument("run", type=Path)
    four.add_argument("other", help="another run folder, a file, or embedded")
    options = parser.parse_args()
    if options.command == "curve":
        found = curve(options.run, options.epochs, options.number)
        if options.output is not None:
            options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    elif options.command == "compare":
        raise SystemExit(0 if compare(options.run, options.other) else 1)
    elif options.command == "ship":
        found = json.loads(options.curve.read_text(encoding="utf-8"))
        last = next(point for point in found["points"] if point["epoch"] == options.epoch)
        ship(
            options.run,
            options.output,
            options.epoch,
            {"judge_distance": last, "protocol": found["protocol"]},
        )
    else:
        from i2i_lightning.checkpoints import load_style_generator
        from i2i_lightning.sampling.pictures import to_picture, write_png
        from i2i_lightning.sampling.sheets import Layout, Sheet

        generator = load_style_generator(options.generator)
        sheet = Sheet(Layout(10, 6, 96))
        plain, truncated = samples(generator, 40, 1), samples(generator, 20, 2, 0.7)
        for index, image in enumerate([*plain, *truncated]):
            sheet.put(index % 10, index // 10, to_picture(image), "psi 0.7" if index >= 40 else "")
        write_png(options.output, sheet.image, {"truncation": "1 in the first four rows, then 0.7"})


if __name__ == "__main__":
    main()
