r"""pix2pix on CMP facades beside its two ablations at equal budget: L1 + cGAN, L1 alone, cGAN alone.

    python -m benchmarks.facades train FACADES OUT --size-px 128 --epochs 100 --batch-size 4 \
        --base-channels 32 --discriminator-channels 16
    python -m benchmarks.facades collect FACADES OUT

``train`` runs the three through ``i2i-train experiment=pix2pix_facades``, one after the other, and then
collects; a run that was interrupted is resumed. ``collect`` evaluates the last checkpoint of each run on the
test split (``i2i-evaluate``), both in the paper's test mode (dropout and image statistics as in training) and
with running statistics, and writes ``results.json``, ``results.md`` and ``samples.png`` into OUT. FACADES is
the folder that holds ``train``, ``val`` and ``test``. The networks of LPIPS, FID and KID are fetched by
``i2i-weights get all``.

L1, PSNR and SSIM reward blur; LPIPS, KID and FID do not. The paper ranks the three by people and by a
segmentation network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ABLATIONS = {
    "L1 + cGAN": ("l1_cgan", []),
    "L1": ("l1", ["loss.lambda_gan=0"]),
    "cGAN": ("cgan", ["loss.lambda_l1=0"]),
}
MODES = {"train": "as in training", "eval": "running statistics"}
"""The picture shows the last of these."""
SAMPLES = 6
METRICS = {
    "l1": "L1",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips_alex": "LPIPS (Alex)",
    "lpips_vgg": "LPIPS (VGG)",
    "kid": "KID",
    "fid": "FID",
}
DIGITS = {"psnr": 2, "fid": 1}


def train(data: Path, out: Path, name: str, options: argparse.Namespace) -> None:
    """Train one of the ablations into ``out/runs/<folder>``, or finish the run that is there."""
    folder, overrides = ABLATIONS[name]
    run = out / "runs" / folder
    if (run / "checkpoints" / "last.ckpt").is_file():
        words = [f"resume={run}"]
    else:
        words = [
            "experiment=pix2pix_facades",
            f"data.root={data}",
            f"data.load_px={options.size_px * 286 // 256}",
            f"data.crop_px={options.size_px}",
            f"data.batch_size={options.batch_size}",
            "generator=unet",
            f"generator.base_channels={options.base_channels}",
            f"discriminator.base_channels={options.discriminator_channels or options.base_channels}",
            f"trainer.max_epochs={options.epochs}",
            f"trainer.check_val_every_n_epoch={max(1, options.epochs // 20)}",
            f"callbacks.checkpoints.every_n_epochs={max(1, options.epochs // 20)}",
            f"hydra.run.dir={run}",
            *overrides,
        ]
    subprocess.run([sys.executable, "-m", "i2i_lightning.commands.train", *words], check=True)


def collect(data: Path, out: Path) -> None:
    """Evaluate the last checkpoint of every run in ``out/runs``, in both test modes; draw a few images."""
    from i2i_lightning.checkpoints.io import read_checkpoint
    from i2i_lightning.commands import evaluate

    figures: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for name, (folder, _) in ABLATIONS.items():
        run = out / "runs" / folder
        for mode, said in MODES.items():
            measured = out / "evaluation" / f"{folder}_{mode}"
            words = [f"run={run}", f"data.root={data}", f"test_mode={mode}", f"output={measured}"]
            if evaluate.APP.main([*words, f"metrics=[{','.join(METRICS)}]"]) != 0:
                sys.exit(1)
            report = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))
            found = report["directions"]["ab"]
            figures[f"{name}, {said}"] = found["figures"]["outputs"]
        checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        method = checkpoint["method_config"]
        runs[name] = {
            "overrides": ABLATIONS[name][1],
            "commit": (environment.get("git") or {}).get("commit"),
            "versions": environment["versions"],
            "started": environment["started"],
            "epochs": checkpoint["epoch"] + 1,
            "batches": checkpoint["batches_seen"],
            "generator": method["generator"],
            "discriminator": method["discriminator"],
        }
    figures |= {row: found["figures"][row] for row in ("copied input", "train targets")}
    report = {
        "data": report["data"] | {"root": data.name},
        "split": report["split"],
        "images": found["images"],
        "protocol": found["protocol"],
        "figures": figures,
        "runs": runs,
        "versions": report["environment"]["versions"],
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = markdown(figures)
    (out / "results.md").write_text(table + "\n", encoding="utf-8")
    draw(pictures(data, out), out / "samples.png")
    print(table)


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a table: a row for each objective, a column for each metric."""
    lines = [
        f"| objective, test mode | {' | '.join(METRICS.values())} |",
        "| --- |" + " --- |" * len(METRICS),
    ]
    for name, row in figures.items():
        cells = []
        for metric in METRICS:
            value = f"{row[metric]['mean']:.{DIGITS.get(metric, 3)}f}" if metric in row else "–"
            value = value.replace("-0.000", "0.000")
            deviation = f" ± {row['kid_std']['mean']:.3f}" if metric == "kid" and metric in row else ""
            cells.append(value + deviation)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pictures(data: Path, out: Path) -> dict[str, list[Any]]:
    """Translate the first test images with every run, in the last of ``MODES``."""
    from omegaconf import OmegaConf

    from i2i_lightning.commands.evaluate import data_for
    from i2i_lightning.metrics.evaluation import Batches, shown_output
    from i2i_lightning.translation.translator import Translator

    columns: dict[str, list[Any]] = {"input": []}
    for name, (folder, _) in ABLATIONS.items():
        run = out / "runs" / folder
        node = OmegaConf.load(run / "config.yaml").data
        node.root = str(data)
        datamodule = data_for(node, "test")
        translator = Translator.load(run, test_mode=list(MODES)[-1], device="cpu")
        (shown,) = Batches(datamodule, "test", "ab", SAMPLES)
        fake = shown_output(datamodule, translator.network(shown.source), shown.source, "ab")
        columns |= {"input": list(shown.source_rgb), name: list(fake)}
    assert shown.pair_rgb is not None
    return columns | {"target": list(shown.pair_rgb)}


def draw(columns: dict[str, list[Any]], path: Path) -> None:
    """Draw samples as rows and objectives as columns, with headings."""
    from PIL import Image, ImageDraw, ImageFont

    tile, gap, head = 160, 6, 30
    names = list(columns)
    rows = len(next(iter(columns.values())))
    sheet = Image.new(
        "RGB", (len(names) * (tile + gap) + gap, head + rows * (tile + gap) + gap), (250, 250, 248)
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, name in enumerate(names):
        left = gap + column * (tile + gap)
        pen.text((left + tile / 2, head / 2 + 2), name, fill=(50, 50, 54), font=font, anchor="mm")
        for row, image in enumerate(columns[name]):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
                (tile, tile), Image.Resampling.LANCZOS
            )
            sheet.paste(picture, (left, head + gap + row * (tile + gap)))
    sheet.save(path)


def main() -> None:
    """Run the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("train", "collect"))
    parser.add_argument("data", type=Path, help="folder with train, val and test")
    parser.add_argument("out", type=Path, help="where runs and results go")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--base-channels", type=int, default=64)
    parser.add_argument("--discriminator-channels", type=int, help="default: as the generator")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument(
        "--only", choices=list(ABLATIONS), action="append", help="train just this one; repeatable"
    )
    options = parser.parse_args()
    if options.step == "train":
        for name in options.only or ABLATIONS:
            train(options.data.resolve(), options.out.resolve(), name, options)
    if options.step == "collect" or not options.only:
        collect(options.data.resolve(), options.out.resolve())


if __name__ == "__main__":
    main()
