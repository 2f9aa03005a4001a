"""Inversion of unseen faces: spaces, starts, the order of latents and noise, presets, batch sizes.

    python -m benchmarks.inversion --json benchmarks/results/inversion_toy_cpu.json
    python -m benchmarks.inversion --json inversion.json --only joint presets

The targets are ToyFaces photos of the test split, renders that the generator has never seen and did not draw.
What the papers claim is put to the test image by image: a difference counts if it is more than two standard
errors from what is claimed, over the paired differences.

``--only`` measures some parts and keeps what a file of the same generator, images and network holds of the
others. The perceptual network is VGG-16 where its weights are at hand (``i2i-weights``), else its substitute;
results say which.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.train_step import machine
from i2i_lightning.checkpoints import load_style_generator
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesPictures
from i2i_lightning.data.transforms import scale_to_network
from i2i_lightning.losses.features import Perceptual, perceptual
from i2i_lightning.methods.inversion import Embedding, InversionLoss, Stage, Start, Targets, embed, render
from i2i_lightning.metrics.image import psnr, ssim
from i2i_lightning.networks.style import StyleGenerator

PARTS = ("spaces", "starts", "noise", "joint", "presets", "batch")
METRICS = ("psnr", "psnr_latent", "ssim", "perceptual", "lpips", "objective", "distance")
"""Of every image. ``psnr_latent`` is that of the latent alone, with the generator's own noise maps: what an
edit of the latent can reach. The objective is that of the common loss, whatever a row's was."""
PRESETS = (
    "gan_inversion_z",
    "stylegan2_projector",
    "image2stylegan",
    "image2styleganpp",
    "joint",
    "pti",
    "editable",
    "fast",
)
Rate = float | Literal["auto"]
NOISE_RATES: tuple[Rate, ...] = (0.1, 1, 5, 20, 100, "auto")
NOISE_DB = 10.0
"""Gain of the noise stage that is claimed."""
SHORT_STEPS = 100
"""Of the comparison of rates."""


@dataclass
class Bench:
    """What all rows share.

    Args:
        generator: What draws.
        targets: The images.
        compare: The perceptual network of the objective, by which rows are measured too.
        lpips: Another, which nothing but presets that name it is optimised for.
        steps: Steps of a stage of latents.
        noise_steps: Steps of a stage of noise maps.
        preset_steps: The most steps of a preset's stage, before ``steps_scale``.
        preset_images: Images of a preset.
        steps_scale: What steps of presets are multiplied by.
        presets: Those that are measured.
    """

    generator: StyleGenerator
    targets: Targets
    compare: Perceptual
    lpips: Perceptual
    steps: int
    noise_steps: int
    preset_steps: int
    preset_images: int
    steps_scale: float
    presets: Sequence[str] = PRESETS

    def latents(self, space: str, steps: int | None = None) -> Stage:
        """Return a stage that moves the latent in ``space``."""
        return Stage([space], steps or self.steps, 0.1, ramp_up=0.05, ramp_down=1.0)

    def maps(self, steps: int | None = None, rate: Rate = "auto") -> Stage:
        """Return a stage that moves the noise maps."""
        return Stage(
            ["noise"],
            steps or self.noise_steps,
            noise_rate=rate,
            ramp_up=0.05,
            ramp_down=1.0,
            weights={"perceptual": 0.0},  # Abdal et al. 2020: noise is searched for by pixels alone
        )

    def first(self, count: int) -> Targets:
        """Return the first ``count`` images."""
        return Targets(self.targets.real[:count], list(self.targets.names)[:count])

    def run(
        self,
        stages: Mapping[str, Stage | None],
        start: Start | None = None,
        loss: InversionLoss | None = None,
        count: int | None = None,
        latent: Tensor | None = None,
    ) -> tuple[dict[str, Any], Embedding]:
        """Return a row of figures, and what was found."""
        targets = self.first(count or len(self.targets))
        begun = time.perf_counter()
        found = embed(
            self.generator, targets, stages, loss or InversionLoss(self.compare), start, latent=latent
        )
        seconds = time.perf_counter() - begun
        row = self.measured(found, targets)
        row["steps"] = {name: stage.steps for name, stage in stages.items() if stage is not None}
        row["taken"] = round(float(found.steps.float().mean()), 1)
        row["seconds_per_image"] = round(seconds / len(targets), 3)
        row["batch"] = len(targets)
        row["notes"] = list(found.notes)
        if found.noise is not None:
            row["noise_rms"] = [round(float(map_.square().mean().sqrt()), 2) for map_ in found.noise]
        return row, found

    @torch.no_grad()
    def measured(self, found: Embedding, targets: Targets) -> dict[str, Any]:
        """Return the means of all metrics, and their values by image."""
        image, real = found.image.clamp(-1, 1), targets.real  # what a saved picture can hold
        values = {
            "psnr": psnr(image, real),
            "psnr_latent": psnr(render(self.generator, found.w_plus).clamp(-1, 1), real),
            "ssim": ssim(image, real),
            "perceptual": self.compare(image, real),
            "lpips": self.lpips(image, real),
            "distance": found.distance,
        }
        values["objective"] = self.compare(found.image, real) + (found.image - real).square().flatten(1).mean(
            1
        )
        images = {name: [float(f"{v:.5g}") for v in values[name].tolist()] for name in METRICS}
        return {"mean": {name: statistics.fmean(images[name]) for name in METRICS}, "images": images}


# ------------------------------------------------------------------------------------------------------ parts


def spaces(bench: Bench) -> dict[str, Any]:
    """Z, W and W+ with the same steps, rate and objective; the objective's parts in W+ alone."""
    # Z has no mean latent; the best of 32 is ahead of it, so that Z gets more than its due.
    rows = {"z": bench.run({"z": bench.latents("z")}, Start("best", 32))[0]}
    rows["w"] = bench.run({"w": bench.latents("w")})[0]
    rows["w_plus"] = bench.run({"w_plus": bench.latents("w_plus")})[0]
    substitute = perceptual("substitute")
    stages = {"w_plus": bench.latents("w_plus")}
    rows["w_plus, substitute network"] = bench.run(stages, loss=InversionLoss(substitute))[0]
    rows["w_plus, pixels alone"] = bench.run(stages, loss=InversionLoss(None))[0]
    return rows


def starts(bench: Bench) -> dict[str, Any]:
    """W+ from every number uniform in [-1, 1]; from the mean it is among the spaces."""
    return {"w_plus, random start": bench.run({"w_plus": bench.latents("w_plus")}, Start("random"))[0]}


def noise(bench: Bench) -> dict[str, Any]:
    """W+ and then noise, the other way round, and what the rate of the noise maps does."""
    row, found = bench.run({"w_plus": bench.latents("w_plus")})
    rows = {"w_plus, before noise": row}
    rows["w_plus then noise"] = bench.run({"noise": bench.maps()}, latent=found.w_plus)[0]
    rows["w_plus then noise"]["seconds_per_image"] += row["seconds_per_image"]
    rows["noise then w_plus"] = bench.run({"noise": bench.maps(), "w_plus": bench.latents("w_plus")})[0]
    for rate in NOISE_RATES:
        stages = {"noise": bench.maps(SHORT_STEPS, rate)}
        rows[f"noise at rate {rate}"] = bench.run(stages, latent=found.w_plus)[0]
    return rows


def joint(bench: Bench) -> dict[str, Any]:
    """Both at once, for as many steps as both stages have."""
    stage = Stage(
        ["w_plus", "noise"],
        bench.steps + bench.noise_steps,
        0.1,
        noise_rate="auto",
        ramp_up=0.05,
        ramp_down=1.0,
    )
    return {"w_plus and noise at once": bench.run({"joint": stage})[0]}


def presets(bench: Bench) -> dict[str, Any]:
    """Every preset as its file has it, but for the number of steps."""
    rows = {}
    for name in bench.presets:
        stages, loss, start = preset(name)
        cut = {
            key: replace(stage, steps=max(1, round(bench.steps_scale * min(bench.preset_steps, stage.steps))))
            for key, stage in stages.items()
        }
        row = bench.run(cut, start, loss, bench.preset_images)[0]
        row["published_steps"] = {key: stage.steps for key, stage in stages.items()}
        rows[name] = row
        print(f"{name}: {row['mean']['psnr']:.2f} dB", flush=True)
    return rows


def preset(name: str) -> tuple[dict[str, Stage], InversionLoss, Start]:
    """Return stages, objective and start of ``conf/preset/<name>.yaml``."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from i2i_lightning import config
    from i2i_lightning.cli.folders import conf_dir

    config.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = compose("invert", overrides=[f"preset={name}"]).method
    stages, loss, start = (instantiate(node[key], _convert_="all") for key in ("stages", "loss", "start"))
    return {key: stage for key, stage in stages.items() if stage is not None}, loss, start


def batch(bench: Bench) -> dict[str, Any]:
    """The preset ``fast`` by batch size: the first images, all its steps, nobody stopping early."""
    stages, loss, start = preset("fast")
    rows = {}
    for size in (1, 4, 16):
        scale = bench.steps_scale
        everything = {
            key: replace(stage, steps=max(1, round(stage.steps * scale)), patience=None)
            for key, stage in stages.items()
        }
        rows[f"batch {size}"] = bench.run(everything, start, loss, min(size, len(bench.targets)))[0]
    return rows


MEASURED: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "spaces": spaces,
    "starts": starts,
    "noise": noise,
    "joint": joint,
    "presets": presets,
    "batch": batch,
}


# ----------------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """``metric`` of the first row exceeds that of the second by at least ``by``.

    Args:
        text: What is claimed.
        rows: Part and row, twice.
        metric: What is compared.
        sign: 1 where more is better, -1 where less is.
        by: Least difference.
    """

    text: str
    rows: tuple[tuple[str, str], tuple[str, str]]
    metric: str
    sign: int = 1
    by: float = 0.0

    def judged(self, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """Return the verdict over paired differences; None where a row has not been measured."""
        sides = [parts.get(part, {}).get(row) for part, row in self.rows]
        if sides[0] is None or sides[1] is None:
            return None
        left, right = (side["images"][self.metric] for side in sides)
        differences = [self.sign * (a - b) for a, b in zip(left, right, strict=True)]
        mean = statistics.fmean(differences)
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
        holds = mean - 2 * error > self.by or (error == 0 and mean > self.by)
        return {
            "claim": self.text,
            "metric": self.metric,
            "better_by": mean,
            "standard_error": error,
            "claimed": self.by,
            "share_of_images": sum(d > self.by for d in differences) / len(differences),
            "holds": holds,
        }


Z, W, W_PLUS = ("spaces", "z"), ("spaces", "w"), ("spaces", "w_plus")
RANDOM = ("starts", "w_plus, random start")
THEN = ("noise", "w_plus then noise")
CLAIMS = (
    Claim("W+ beats W", (W_PLUS, W), "psnr"),
    Claim("W+ beats W", (W_PLUS, W), "perceptual", -1),
    Claim("W beats Z", (W, Z), "psnr"),
    Claim("W beats Z", (W, Z), "perceptual", -1),
    Claim("the mean latent beats a random start", (W_PLUS, RANDOM), "objective", -1),
    Claim("the mean latent beats a random start", (W_PLUS, RANDOM), "distance", -1),
    Claim(
        "the noise stage adds at least 10 dB", (THEN, ("noise", "w_plus, before noise")), "psnr", by=NOISE_DB
    ),
    Claim("W+ then noise beats both at once", (THEN, ("joint", "w_plus and noise at once")), "psnr"),
    Claim("W+ then noise beats both at once", (THEN, ("joint", "w_plus and noise at once")), "psnr_latent"),
    Claim("W+ then noise beats noise then W+", (THEN, ("noise", "noise then w_plus")), "psnr"),
    Claim("W+ then noise beats noise then W+", (THEN, ("noise", "noise then w_plus")), "psnr_latent"),
)

# ----------------------------------------------------------------------------------------------------- report


def table(result: Mapping[str, Any]) -> str:
    """Return the rows and the verdicts as Markdown."""
    lines = [
        "| part | row | PSNR, dB | of the latent alone | SSIM | perceptual | LPIPS | objective "
        "| from the mean | s per image |",
        f"|{' --- |' * 10}",
    ]
    for part, rows in result["parts"].items():
        for name, row in rows.items():
            mean = row["mean"]
            figures = [
                f"{mean['psnr']:.2f}",
                f"{mean['psnr_latent']:.2f}",
                f"{mean['ssim']:.3f}",
                f"{mean['perceptual']:.2f}",
                f"{mean['lpips']:.3f}",
                f"{mean['objective']:.2f}",
                f"{mean['distance']:.2f}",
                f"{row['seconds_per_image']:.2f}",
            ]
            lines.append(f"| {part} | {name} | {' | '.join(figures)} |")
    lines += [
        "",
        "| claim | measured by | better by | claimed | images | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for verdict in result["claims"]:
        lines.append(
            f"| {verdict['claim']} | {verdict['metric']} "
            f"| {verdict['better_by']:.3f} ± {verdict['standard_error']:.3f} | > {verdict['claimed']:g} "
            f"| {verdict['share_of_images']:.0%} | {'holds' if verdict['holds'] else 'does not hold'} |"
        )
    return "\n".join(lines)


def written(result: Mapping[str, Any]) -> str:
    """Return the JSON, lists of numbers on a line of their own."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[-+\d.,e\s]*\]", lambda match: " ".join(match[0].split()), text) + "\n"


def ordered(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {part: parts[part] for part in PARTS if part in parts}


def strengths(generator: StyleGenerator) -> dict[str, float]:
    """Return what the noise maps are multiplied by, where the generator has such numbers."""
    return {
        name.removeprefix("synthesis."): float(f"{value.item():.3g}")
        for name, value in generator.named_parameters()
        if name.endswith("noise_strength")
    }


def faces(number: int, size_px: int) -> Targets:
    pictures = ToyFacesPictures(ToyFaces("test", size_px, (), number), "photo")
    pixels = torch.stack([torch.from_numpy(pictures[index][0]) for index in range(number)])
    return Targets(scale_to_network(pixels), list(pictures.names))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--generator", default="embedded", help="as for i2i-invert")
    parser.add_argument("--number", type=int, default=32, help="images")
    parser.add_argument("--steps", type=int, default=100, help="of a stage of latents")
    parser.add_argument("--noise-steps", type=int, default=300, help="of a stage of noise maps")
    parser.add_argument("--preset-steps", type=int, default=300, help="the most of a preset's stage")
    parser.add_argument("--preset-images", type=int, default=8)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="of presets, after that cut")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS, help="others are kept")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="also what parts not measured now are taken from")
    options = parser.parse_args(words)

    generator = load_style_generator(options.generator)
    compare, lpips = perceptual(), perceptual(like="lpips_vgg")
    bench = Bench(
        generator,
        faces(options.number, generator.size_px),
        compare,
        lpips,
        options.steps,
        options.noise_steps,
        options.preset_steps,
        min(options.preset_images, options.number),
        options.steps_scale,
        options.presets,
    )
    setting = {
        "generator": options.generator,
        "fingerprint": generator.fingerprint(),
        "size_px": generator.size_px,
        "images": f"{options.number} ToyFaces photos of the test split",
        "objective": f"1 x {compare.protocol} + 1 x mean squared error of pixels",
        "perceptual_is_substitute": compare.substitute,
        "lpips": lpips.protocol,
        "psnr": "peak 255 levels (2 in [-1, 1]), of each image, then the mean; renders clamped to [-1, 1]",
        "distance": "mean over rows of ||w - mean|| in units of the root mean square of it over w",
        "steps": options.steps,
        "noise_steps": options.noise_steps,
        "noise_rate": "auto",
        "preset_steps": f"at most {options.preset_steps} a stage, times {options.steps_scale:g}",
        "preset_images": bench.preset_images,
        "threads": torch.get_num_threads(),
    }
    result: dict[str, Any] = {"machine": machine(), "setting": setting}
    before: dict[str, Any] = {}
    if options.json is not None and options.json.is_file():
        saved = json.loads(options.json.read_text(encoding="utf-8"))
        # Rows of another generator, or of other images, steps or networks, cannot stand beside these.
        if saved["setting"] == setting:
            before = saved["parts"]
        else:
            print(f"{options.json}: of another setting, begun anew", flush=True)
    result["noise_strengths"] = strengths(generator)
    for part in options.only:
        rows = {**before.get(part, {}), **MEASURED[part](bench)}
        before[part] = {name: rows[name] for name in (PRESETS if part == "presets" else rows) if name in rows}
        result["parts"] = ordered(before)
        result["claims"] = [v for claim in CLAIMS if (v := claim.judged(before)) is not None]
        if options.json is not None:
            options.json.write_text(written(result), encoding="utf-8")
        print(f"{part}: measured", flush=True)
    print(table(result))


if __name__ == "__main__":
    main()
