r"""pix2pix on CMP facades beside its two ablations at equal budget: L1 + cGAN, L1 alone, cGAN alone.

    python -m benchmarks.facades train FACADES OUT --size-px 128 --epochs 100 --batch-size 4 \
        --base-channels 32 --discriminator-channels 16
    python -m benchmarks.facades collect FACADES OUT

``train`` runs the three through ``i2i-train experiment=pix2pix_facades``, one after the other, and then
collects; a run that was interrupted is resumed. ``collect`` translates the test split with the last
checkpoint of each run, both in the paper's test mode (dropout and batch statistics as in training) and with
running statistics, and writes ``results.json``, ``results.md`` and ``samples.png`` into OUT. FACADES is the
folder that holds ``train``, ``val`` and ``test``.

L1, PSNR and SSIM reward blur: they are here to show that the runs trained, not to rank them. The paper ranks
them by people and by a segmentation network.
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
    """Measure the test split with every run in ``out/runs``, in both test modes; draw a few of its images."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from i2i_lightning.checkpoints.io import read_checkpoint
    from i2i_lightning.config import register

    register()
    rows: dict[str, dict[str, float]] = {}
    columns: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for name, (folder, _) in ABLATIONS.items():
        run = out / "runs" / folder
        config = OmegaConf.load(run / "config.yaml")
        config.data.root = str(data)
        datamodule = instantiate(config.data, _convert_="all")
        datamodule.setup("test")
        method = instantiate(config.method, _convert_="all")
        checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
        method.load_state_dict(checkpoint["state_dict"])
        for mode, said in MODES.items():
            method.test_mode = mode
            measured, pictures = translate(method, datamodule)
            rows[f"{name}, {said}"] = measured["output"]
            columns |= {"input": pictures["input"], name: pictures["output"]}
        copied = measured["input"]
        target = pictures["target"]
        environment = json.loads((run / "environment.json").read_text())
        runs[name] = {
            "overrides": ABLATIONS[name][1],
            "commit": (environment.get("git") or {}).get("commit"),
            "versions": environment["versions"],
            "started": environment["started"],
            "epochs": checkpoint["epoch"] + 1,
            "images_seen": checkpoint["batches_seen"] * config.data.batch_size,
        }
    rows["copy of the input"] = copied
    report = {
        "test_images": len(datamodule.test_set),
        "size_px": config.data.crop_px,
        "batch_size": config.data.batch_size,
        "generator": OmegaConf.to_container(config.generator, resolve=True),
        "discriminator": OmegaConf.to_container(config.discriminator, resolve=True),
        "results": rows,
        "runs": runs,
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [f"| {name} | {r['l1']:.3f} | {r['psnr']:.2f} | {r['ssim']:.3f} |" for name, r in rows.items()]
    table = "\n".join(
        ["| objective, test mode | L1 in [-1, 1] | PSNR, dB | SSIM |", "| --- | --- | --- | --- |", *lines]
    )
    (out / "results.md").write_text(table + "\n")
    draw(columns | {"target": target}, out / "samples.png")
    print(table)


def translate(method: Any, datamodule: Any) -> tuple[dict[str, dict[str, float]], dict[str, list[Any]]]:
    """Translate the test split one image at a time.

    Returns:
        The mean of each measure against the target, of the outputs and of the inputs themselves; and the
        first pictures of input, output and target.
    """
    from i2i_lightning.metrics.image import l1, psnr, ssim

    values: dict[str, dict[str, list[float]]] = {"output": {}, "input": {}}
    pictures: dict[str, list[Any]] = {"input": [], "output": [], "target": []}
    for index, raw in enumerate(datamodule.test_dataloader()):
        batch = datamodule.to_network(raw)
        fake_b = method.validation_step(batch, index)["fake_b"]
        shown = {
            "input": datamodule.display_input(batch["real_a"]),
            "output": datamodule.display_output(fake_b, batch["real_a"]),
            "target": datamodule.display_output(batch["real_b"], batch["real_a"]),
        }
        for key, measure in (("l1", l1), ("psnr", psnr), ("ssim", ssim)):
            for kind, kept in values.items():
                kept.setdefault(key, []).extend(measure(shown[kind], shown["target"]).tolist())
        if index < SAMPLES:
            for kind, image in shown.items():
                pictures[kind].append(image[0])
    means = {kind: {key: sum(v) / len(v) for key, v in kept.items()} for kind, kept in values.items()}
    return means, pictures


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
