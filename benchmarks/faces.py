"""Photos of real faces through the FFHQ generator: the peers' table, seconds by batch size, every edit.

    python -m benchmarks.faces PHOTOS OUT --json benchmarks/results/faces_ffhq_cpu.json --docs docs
    python -m benchmarks.faces PHOTOS OUT --only edits --directions smile.pt age.pt pose.pt

PHOTOS is a folder with a face each, two of them of one person: ``--neutral`` and ``--expressive`` name their
files. All that is measured and drawn is made by the commands that users have, in folders under OUT that are
kept: a part that is there is not made again. The generator and VGG-16 are the user's to fetch
(``i2i-weights get ffhq_mobile_stylegan lpips_vgg16``).

* rows: the presets editable (W) and fast (W+, then noise) of i2i-invert, with fewer steps; PSNR, SSIM
  and LPIPS are of the 8-bit pictures that are saved, PSNR with its peak at 255. (GANInverter prints
  10 log10(2 / MSE) of pictures in [-1, 1], whose peak squared is 4: 3.01 dB less for the same pictures.)
* batch: seconds per image and step of W+ and of noise by the number of images searched for together.
* edits: a picture of each operation of i2i-edit. Those of latents start from W: latents of W+ that were
  searched for without restraint, and noise that holds what they miss, reproduce more and edit badly.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.train_step import machine
from i2i_lightning.checkpoints import load_style_generator
from i2i_lightning.checkpoints.latents import load_latent
from i2i_lightning.data.transforms import network_image
from i2i_lightning.losses.features import perceptual
from i2i_lightning.methods.inversion import InversionLoss, Stage, Targets, embed, render
from i2i_lightning.metrics.image import psnr

PARTS = ("rows", "batch", "edits")
FIGURES = ("psnr", "ssim", "lpips", "mse", "distance", "seconds")
BATCHES = (1, 2, 4)
TIMED_STEPS = 4
STRIP_PX, TITLE_PX = 190, 26
"""Heights in the picture of all edits."""


@dataclass
class Bench:
    """What all parts share.

    Args:
        photos: Folder of photos.
        out: Folder of all that is made.
        generator: As for i2i-invert.
        precision: Of the searches of i2i-invert.
        steps: Of a stage of latents, of one of noise maps.
        edit_steps: The same of edits that search.
        neutral: Name of a photo.
        expressive: Name of another of the same person.
        directions: Files of published directions.
    """

    photos: Path
    out: Path
    generator: str
    precision: str
    steps: tuple[int, int]
    edit_steps: tuple[int, int]
    neutral: str
    expressive: str
    directions: Sequence[Path]

    def command(self, name: str, folder: str, words: Sequence[str]) -> dict[str, Any]:
        """Run a command into a folder under OUT, unless it has been; return its words and seconds."""
        said = self.out / folder / "command.json"
        if said.is_file():
            return dict(json.loads(said.read_text(encoding="utf-8")))
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"i2i_lightning.commands.{name}", *words], check=True)
        shown = shlex.join([f"i2i-{name}", *words]).replace(str(self.photos), "PHOTOS")
        shown = shown.replace(str(self.out), "OUT")
        for file in self.directions:
            shown = shown.replace(str(file), file.name)
        record = {
            "command": shown,
            "seconds": round(time.perf_counter() - begun, 1),
        }
        said.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return record

    def inverted(self, folder: str, words: Sequence[str]) -> dict[str, Any]:
        """Return the figures of i2i-invert over all photos."""
        common = [
            f"images={self.photos}",
            "data.fit=align",
            "data.batch_size=8",
            f"generator={self.generator}",
            f"precision={self.precision}",
            f"hydra.run.dir={self.out / folder}",
        ]
        record = self.command("invert", folder, [*common, *words])
        with (self.out / folder / "results.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        images = {row["image"]: {key: float(row[key]) for key in FIGURES if row.get(key)} for row in rows}
        keys = [key for key in FIGURES if all(key in row for row in images.values())]
        mean = {key: statistics.fmean(row[key] for row in images.values()) for key in keys}
        return {**record, "mean": mean, "images": images}

    @property
    def names(self) -> list[str]:
        """Names of the photos that have been embedded."""
        return sorted(path.stem for path in (self.out / "fast" / "latents").glob("*.safetensors"))

    def latent(self, name: str) -> Path:
        """Return the latent file of a photo that is edited: that in W."""
        return self.out / "w" / "latents" / f"{name}.safetensors"

    def target(self, name: str) -> Path:
        """Return the face that was cut out of a photo."""
        return self.out / "fast" / "targets" / f"{name}.png"


# ------------------------------------------------------------------------------------------------------ parts


def rows(bench: Bench) -> dict[str, Any]:
    """W, and W+ then noise; of the latter also what the latent alone draws."""
    latent, noise = bench.steps
    start = "method.start.candidates=16"
    steps = [f"method.stages.w_plus.steps={latent}", f"method.stages.noise.steps={noise}"]
    made = {
        "W": bench.inverted("w", ["preset=editable", f"method.stages.w.steps={latent}", start]),
        "W+, then noise": bench.inverted("fast", ["preset=fast", *steps, start]),
    }
    generator = load_style_generator(bench.generator).eval()
    alone = {}
    for name in bench.names:
        with torch.no_grad():
            found = load_latent(bench.out / "fast" / "latents" / f"{name}.safetensors")
            image = render(generator, found.w_plus[None]).clamp(-1, 1)
        alone[name] = float(psnr(image, picture(bench.target(name))))
    made["W+, then noise"]["psnr_of_the_latent_alone"] = alone
    return made


def picture(path: Path) -> torch.Tensor:
    """Return a picture as (1, 3, H, W) in [-1, 1]."""
    with Image.open(path) as image:
        return network_image(np.asarray(image.convert("RGB")))


def batch(bench: Bench) -> dict[str, Any]:
    """Seconds per image and step, the first step left out."""
    generator = load_style_generator(bench.generator)
    images = torch.cat([picture(bench.target(name)) for name in bench.names])
    stages = {
        "w_plus": ({"w_plus": Stage(["w_plus"], 1, 0.05)}, InversionLoss(perceptual())),
        "noise": ({"noise": Stage(["noise"], 1, 1.0)}, InversionLoss(None)),
    }
    found: dict[str, Any] = {}
    for name, (stage, loss) in stages.items():
        for size in BATCHES:
            targets = Targets(images[:size], bench.names[:size])
            seconds = []
            for steps in (1, 1 + TIMED_STEPS):
                longer = {name: Stage(stage[name].moves, steps, stage[name].rate)}
                begun = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bench.precision == "bf16"):
                    embed(generator, targets, longer, loss)
                seconds.append(time.perf_counter() - begun)
            found[f"{name}, batch {size}"] = round((seconds[1] - seconds[0]) / TIMED_STEPS / size, 3)
    return found


def edits(bench: Bench) -> dict[str, Any]:
    """Make a picture of every operation, and return its command and seconds."""
    side = load_style_generator(bench.generator).size_px
    first, second = [name for name in bench.names if name not in (bench.neutral, bench.expressive)][:2]
    masks = drawn_masks(bench.out / "masks", side, bench.target(first))
    latents = {name: str(bench.latent(name)) for name in bench.names}
    effort = [f"effort.latent_steps={bench.edit_steps[0]}", f"effort.noise_steps={bench.edit_steps[1]}"]
    effort += ["video.frames=0"]
    mouth = ",".join(str(round(part * side)) for part in (0.36, 0.64, 0.64, 0.82))
    four = f"latents=[{','.join(latents[name] for name in bench.names[:4])}]"
    two = f"latents=[{latents[first]},{latents[second]}]"
    three = f"latents=[{latents[first]},{latents[bench.neutral]},{latents[bench.expressive]}]"
    asked: dict[str, list[str]] = {
        "morph": [two, "operation.pictures=6", "video.frames=0"],
        "corners": [four, "operation.side=4", "video.frames=0"],
        "expression_transfer": [three, "operation.threshold=0", "operation.strengths=[0,0.15,0.3,0.45]"],
        "style_transfer": [f"latents=[{latents[first]},{latents[second]},{latents[bench.expressive]}]"],
        "direction": [f"latents=[{latents[first]}]", "operation.samples=500"],
        "attribute_transfer": [
            f"latents=[{latents[first]},{latents[bench.expressive]}]",
            f"operation.box=[{mouth}]",
        ],
        "crossover": [
            f"operation.inside={bench.target(first)}",
            f"operation.around={bench.target(second)}",
            f"operation.mask={masks['left']}",
            *effort,
        ],
        "inpaint": [f"operation.image={bench.target(first)}", f"operation.hole={masks['mouth']}", *effort],
        "local_edit": [
            f"operation.photo={bench.target(first)}",
            f"operation.scribbled={masks['scribbled']}",
            f"latents=[{latents[first]}]",
            *effort,
        ],
        "local_style_transfer": [
            f"operation.content={bench.target(first)}",
            f"operation.style={bench.target(second)}",
            f"operation.mask={masks['lower']}",
            *effort,
        ],
    }
    made = {}
    for operation, words in asked.items():
        made[operation] = edited(bench, operation, operation, words)
    for file in bench.directions:
        words = [f"latents=[{latents[first]}]", f"operation.file={file}", f"operation.of={bench.generator}"]
        words += ["operation.strengths=[-8,-4,0,4,8]", "video.frames=0"]
        made[f"direction, {file.stem}"] = edited(bench, "direction", f"direction_{file.stem}", words)
    return made


def edited(bench: Bench, operation: str, folder: str, words: Sequence[str]) -> dict[str, Any]:
    where = bench.out / "edits" / folder
    common = [f"operation={operation}", f"generator={bench.generator}", f"output={where}", "tile_px=256"]
    return bench.command("edit", f"edits/{folder}", [*common, *words])


def drawn_masks(folder: Path, side: int, photo: Path) -> dict[str, Path]:
    """Draw the masks of an aligned face, and scribbles on a photo of one."""
    folder.mkdir(parents=True, exist_ok=True)
    areas = {
        "left": ("rectangle", (0.0, 0.0, 0.5, 1.0)),
        "mouth": ("rectangle", (0.38, 0.66, 0.62, 0.78)),
        "lower": ("ellipse", (0.2, 0.15, 0.8, 0.95)),
    }
    files = {}
    for name, (shape, area) in areas.items():
        mask = Image.new("L", (side, side))
        getattr(ImageDraw.Draw(mask), shape)([part * side for part in area], fill=255)
        files[name] = folder / f"{name}.png"
        mask.save(files[name])
    with Image.open(photo) as opened:
        scribbled = opened.convert("RGB")
    pen = ImageDraw.Draw(scribbled)
    for left in (0.3, 0.54):  # a pair of glasses
        ring = [part * side for part in (left, 0.42, left + 0.16, 0.54)]
        pen.ellipse(ring, outline="black", width=max(1, side // 80))
    files["scribbled"] = folder / "scribbled.png"
    scribbled.save(files["scribbled"])
    return files


# ---------------------------------------------------------------------------------------------------- results


def table(result: dict[str, Any]) -> str:
    lines = []
    if "rows" in result:
        lines += [
            "| | PSNR, dB | SSIM | LPIPS (VGG) | MSE | from the mean | s per image |",
            f"|{' --- |' * 7}",
        ]
        for name, row in result["rows"].items():
            mean = row["mean"]
            shown = [
                f"{mean[key]:.{digits}f}" if key in mean else ""
                for key, digits in zip(FIGURES, (2, 3, 3, 4, 2, 0), strict=True)
            ]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    if "batch" in result:
        lines += ["", "| s per image and step | |", "| --- | --- |"]
        lines += [f"| {name} | {seconds:.2f} |" for name, seconds in result["batch"].items()]
    if "edits" in result:
        lines += ["", "| edit | s |", "| --- | --- |"]
        lines += [f"| {name} | {row['seconds']:.0f} |" for name, row in result["edits"].items()]
    return "\n".join(lines)


def pictures(bench: Bench, folder: Path) -> None:
    """Write ``ffhq_inversion.jpg``, photos and what was found, and ``ffhq_edits.jpg``, a strip per edit."""
    with Image.open(bench.out / "fast" / "results.png") as found:
        found.convert("RGB").save(folder / "ffhq_inversion.jpg", quality=88)
    strips = []
    for place in sorted((bench.out / "edits").iterdir()):
        files = [file for file in sorted(place.glob("*.png")) if file.stem not in ("result", "pasted")]
        with Image.open(files[0]) as opened:
            strip = opened.convert("RGB")
        scale = STRIP_PX / (strip.height if strip.width > strip.height else strip.height / 2)
        strips.append((place.name, strip.resize((round(strip.width * scale), round(strip.height * scale)))))
    width = max(strip.width for _, strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height + TITLE_PX for _, strip in strips)), "white")
    top = 0
    for name, strip in strips:
        ImageDraw.Draw(sheet).text((4, top + 4), name.replace("_", " "), "black", font_size=16)
        sheet.paste(strip, (0, top + TITLE_PX))
        top += strip.height + TITLE_PX
    sheet.save(folder / "ffhq_edits.jpg", quality=85)


MEASURED = {"rows": rows, "batch": batch, "edits": edits}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--generator", default="ffhq")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--steps", type=int, nargs=2, default=(200, 60), help="of W or W+, and of noise")
    parser.add_argument("--edit-steps", type=int, nargs=2, default=(60, 30), help="of edits that search")
    parser.add_argument("--neutral", default="obama_neutral")
    parser.add_argument("--expressive", default="obama")
    parser.add_argument(
        "--directions", type=Path, nargs="*", default=(), help="published, for this generator"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--docs", type=Path, help="folder for the two pictures of what was made")
    parser.add_argument("--json", type=Path, help="also what parts not measured now are taken from")
    options = parser.parse_args(words)
    bench = Bench(
        options.photos.absolute(),
        options.out.absolute(),
        options.generator,
        options.precision,
        tuple(options.steps),
        tuple(options.edit_steps),
        options.neutral,
        options.expressive,
        options.directions,
    )
    setting = {
        "generator": bench.generator,
        "precision": bench.precision,
        "steps": list(bench.steps),
        "edit_steps": list(bench.edit_steps),
        "threads": torch.get_num_threads(),
    }
    result: dict[str, Any] = {"machine": machine(), "setting": setting}
    if options.json is not None and options.json.is_file():
        saved = json.loads(options.json.read_text(encoding="utf-8"))
        if saved["setting"] == setting:
            result |= {part: saved[part] for part in PARTS if part in saved}
    for part in options.only:
        result[part] = MEASURED[part](bench)
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.docs is not None:
        pictures(bench, options.docs)
    print(table(result))


if __name__ == "__main__":
    main()
