"""Edits of toy faces, by the judge: do they change what they should, and leave the rest?

    python -m benchmarks.editing --json benchmarks/results/editing_toy_cpu.json
    python -m benchmarks.editing --pairs 5

A pair is two people of the test split, photos that the generator has never seen, embedded in W by pixels and
a prior: latents of W+ are nearer to the photo and worse to edit. Only the style of a style transfer is
embedded in W+. The second person has another expression too, rendered of the same face, searched for in W+
from where the neutral face ended, by what the two renders differ in. Of every claim the table has the mean
over pairs with its standard error; it holds, or does not, where the mean is on one side of the bound by two
of these.

* morph: Spearman's correlation of a judged parameter with the place on the strip, over the parameters that
  the judge knows at this size (a held-out error of an eighth of the range or less) and in which the ends
  differ by a quarter of it or more; between embedded faces, and between samples at psi 0.7. A reading is the
  mean over shifts of a picture and their mirror images. Without a claim: the same of latents in W+, and
  of rendered faces whose parameters move evenly, which is as much as this judge can see.
* expression: mean change per pixel inside of the mouth's box (of the true landmarks, and two pixels around)
  over that outside. ``w1 + lambda (w3 - w2)`` in W+ alone (Abdal et al. 2019), and with the activations
  of one layer taken from there in the box alone (Abdal et al. 2020).
* inpainting: root mean square outside of the hole, which is the mouth's box; and inside, over that of the
  hole's own mean colour, which is the best flat filling.
* style: how far landmarks, and colours (mean and deviation of the image's), go from the content's to the
  style's where some rows are the style's: 0 stays, 1 arrives. Those rows were chosen on 80 pairs of the train
  split. The same where all rows after a cut are the style's, and for each row alone.

``--only`` measures some parts and keeps what a file of the same setting holds of the others.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.train_step import machine
from i2i_lightning.checkpoints import load_style_generator
from i2i_lightning.data.toyfaces.geometry import LANDMARK_NAMES, landmarks
from i2i_lightning.data.toyfaces.parameters import (
    VECTOR_NAMES,
    FaceParameters,
    flip_vector,
    replace,
    sample_parameters,
    vector,
)
from i2i_lightning.data.toyfaces.render import render as render_face
from i2i_lightning.data.transforms import scale_to_network
from i2i_lightning.editing.local import Effort, attribute_transfer, inpaint
from i2i_lightning.editing.mixing import mix
from i2i_lightning.editing.transfer import embed_difference, expression_transfer, morph, style_transfer
from i2i_lightning.methods.inversion import InversionLoss, Stage, Targets, embed, render
from i2i_lightning.metrics.judge import NUM_CONTINUOUS, Judge, load_judge
from i2i_lightning.networks.style import StyleGenerator

PARTS = ("morph", "expression", "inpaint", "style")
FRAMES = 9
KNOWN_ERROR = 0.25
"""Held-out error of a parameter, whose range is 2, up to which the judge counts as knowing it."""
LEAST_DIFFERENCE = 0.5
"""Difference of the ends in a parameter from which a morph is judged by it."""
NUM_HELD_OUT = 300
"""Renders of the validation split on which the judge's errors are measured."""
SHIFT = 1 / 64
"""Shift of a picture between readings, of half its side: half a pixel of what the judge sees."""
NEUTRAL = {"smile": -0.2, "mouth_open": 0.0}
EXPRESSIVE = {"smile": 0.9, "mouth_open": 0.8}
STRENGTH = 6.0
STYLE_ROWS = (1, 3, 4, 5, 6, 7)
DIFFERENCE_ROWS = (3, 4, 5, 6, 7)
"""Rows that an expression moves: those from 16 px on. Where the mouth lies is left to the face."""
AROUND_PX = 2
TOLERANCE = 0.05
"""Root mean square, in [-1, 1], that is allowed outside of a hole: 32 dB."""
CLAIMS: Mapping[str, tuple[str, float, str]] = {
    "morph.faces": (">", 0.9, "a morph of embedded faces moves judged parameters monotonically"),
    "morph.samples": (">", 0.9, "the same of samples"),
    "expression.w_plus": (">", 3.0, "an expression changes the mouth 3 times as much as the rest"),
    "expression.in_box": (">", 3.0, "the same, with activations of the mouth's box alone"),
    "inpaint.outside": ("<", TOLERANCE, "inpainting leaves the outside"),
    "inpaint.inside_of_flat": ("<", 1.0, "a filling beats the best flat one"),
    "style.landmarks": ("<", 0.5, "style transfer keeps landmarks"),
    "style.colours": (">", 0.5, "style transfer moves colours"),
    "style.colours_beyond_landmarks": (">", 0.0, "colours go further than landmarks"),
}


@dataclass
class Bench:
    """Pairs of faces and their latents.

    Args:
        generator: What draws.
        judge: Who reads.
        loss: Objective of all searches.
        people: The first and the second of each pair, N each.
        first: Photos of the first, (N, 3, S, S).
        points: Their true landmarks, (N, 33, 2) in [0, 1].
        faces: Latents of the first, of the second neutral and with an expression, (N, L, D) each.
        in_w_plus: The first two embedded in W+, the same.
        effort: Of inpainting.
    """

    generator: StyleGenerator
    judge: Judge
    loss: InversionLoss
    people: tuple[Sequence[FaceParameters], Sequence[FaceParameters]]
    first: Tensor
    points: Tensor
    faces: tuple[Tensor, Tensor, Tensor]
    in_w_plus: tuple[Tensor, Tensor]
    effort: Effort

    def draw(self, w_plus: Tensor) -> Tensor:
        """Return images of latents as a file would hold them."""
        return render(self.generator, w_plus).clamp(-1, 1)


def photos(faces: Sequence[FaceParameters], size_px: int) -> Tensor:
    drawn = [torch.from_numpy(render_face(face, size_px, ("photo",))["photo"].copy()) for face in faces]
    images = scale_to_network(torch.stack(drawn))
    return images.permute(0, 3, 1, 2).contiguous() if images.shape[-1] == 3 else images


def embedded(
    generator: StyleGenerator, loss: InversionLoss, images: Tensor, steps: int, space: str = "w"
) -> Tensor:
    """Return latents of images, (N, L, D), found in a space: w or w_plus."""
    stage = Stage([space], steps, 0.1, ramp_up=0.05, ramp_down=1.0, weights={"prior": 0.1})
    names = [str(index) for index in range(len(images))]
    return embed(generator, Targets(images, names), {space: stage}, loss).w_plus


def differing(
    generator: StyleGenerator, loss: InversionLoss, w_plus: Tensor, images: Sequence[Tensor], steps: int
) -> Tensor:
    """Return W+ of expressive faces, image by image as i2i-edit searches for it."""
    rows = [row for row in DIFFERENCE_ROWS if row < generator.num_ws]
    found = [
        embed_difference(generator, w2, neutral, expressive, loss, Effort(steps, 0.05), rows, 0.1).w_plus
        for w2, neutral, expressive in zip(
            w_plus.split(1), images[0].split(1), images[1].split(1), strict=True
        )
    ]
    return torch.cat(found)


def mouth_boxes(points: Tensor, size_px: int) -> Tensor:
    """Return a mask for each face, (N, 1, S, S)."""
    places = [index for index, name in enumerate(LANDMARK_NAMES) if name.startswith("mouth")]
    masks = torch.zeros(len(points), 1, size_px, size_px)
    for mask, mouth in zip(masks, points[:, places] * size_px, strict=True):
        left, top, right, bottom = box_around(mouth, size_px)
        mask[:, top:bottom, left:right] = 1
    return masks


def box_around(points: Tensor, size_px: int) -> tuple[int, int, int, int]:
    low, high = points.amin(0) - AROUND_PX, points.amax(0) + AROUND_PX
    left, top = (max(0, math.floor(value)) for value in low.tolist())
    right, bottom = (min(size_px, math.ceil(value)) for value in high.tolist())
    return left, top, right, bottom


# ------------------------------------------------------------------------------------------------------ parts


def part_morph(bench: Bench) -> dict[str, list[float]]:
    size = bench.generator.size_px
    held_out = [sample_parameters("val", index) for index in range(NUM_HELD_OUT)]
    true = torch.stack([torch.from_numpy(vector(face))[:NUM_CONTINUOUS] for face in held_out])
    errors = (steady(bench.judge, photos(held_out, size)) - true).abs().mean(0)
    known = errors <= KNOWN_ERROR
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2 * len(bench.first), bench.generator.z_dim, generator=rng)
    samples = bench.generator.mapping(z, truncation=0.7).chunk(2)
    found: dict[str, list[float]] = {}
    for name, pairs in (("faces", bench.faces[:2]), ("samples", samples), ("in_w_plus", bench.in_w_plus)):
        strips = (bench.draw(morph(start, end, FRAMES)) for start, end in zip(*pairs, strict=True))
        found[name] = [value for strip in strips for value in monotony(bench.judge, strip, known)]
    places = torch.linspace(0, 1, FRAMES).tolist()
    rendered = (
        photos([between(one, other, place) for place in places], size)
        for one, other in zip(*bench.people, strict=True)
    )
    found["rendered"] = [value for strip in rendered for value in monotony(bench.judge, strip, known)]
    return found


def steady(judge: Judge, images: Tensor) -> Tensor:
    """Return the parameters ``(N, P)`` of images, the mean over nine shifts and their mirror images."""
    mirrored = torch.from_numpy(flip_vector(torch.ones(len(VECTOR_NAMES)).numpy()))
    readings = []
    for right in (-SHIFT, 0.0, SHIFT):
        for down in (-SHIFT, 0.0, SHIFT):
            moves = torch.tensor([[1.0, 0.0, right], [0.0, 1.0, down]]).expand(len(images), 2, 3)
            grid = F.affine_grid(moves, list(images.shape), align_corners=False)
            moved = F.grid_sample(images, grid, "bicubic", "border", align_corners=False).clamp(-1, 1)
            readings += [judge.read(moved).parameters, mirrored * judge.read(moved.flip(-1)).parameters]
    return torch.stack(readings).mean(0)[:, :NUM_CONTINUOUS]


def between(one: FaceParameters, other: FaceParameters, place: float) -> FaceParameters:
    """Return ``one`` with its numbers and colours on the way to the other's; what has a name stays."""
    changes: dict[str, object] = {}
    for field in fields(one):
        start, end = getattr(one, field.name), getattr(other, field.name)
        if isinstance(start, float):
            changes[field.name] = start + place * (end - start)
        elif isinstance(start, tuple):
            changes[field.name] = tuple(a + place * (b - a) for a, b in zip(start, end, strict=True))
    return replace(one, **changes)


def monotony(judge: Judge, strip: Tensor, known: Tensor) -> list[float]:
    """Return one number, the mean rank correlation of a strip's known parameters that differ at its ends.

    None where none of them does.
    """
    read = steady(judge, strip)
    apart = known & ((read[-1] - read[0]).abs() >= LEAST_DIFFERENCE)
    values = [spearman(column) for column in read[:, apart].unbind(1)]
    return [statistics.fmean(values)] if values else []


def spearman(values: Tensor) -> float:
    """Return the rank correlation of values with their order, without its sign."""
    ranks = values.argsort().argsort().double()
    order = torch.arange(len(values), dtype=torch.float64)
    return abs(float(torch.corrcoef(torch.stack([ranks, order]))[0, 1]))


def part_expression(bench: Bench) -> dict[str, list[float]]:
    size = bench.generator.size_px
    boxes = mouth_boxes(bench.points, size)
    layer = f"b{size // 2}.conv1"
    found: dict[str, list[float]] = {name: [] for name in ("w_plus", "in_box", "smile", "mouth_open")}
    for index, (w1, w2, w3) in enumerate(zip(*bench.faces, strict=True)):
        moved = expression_transfer(w1, w2, w3, STRENGTH, threshold=0.0)
        before, after = bench.draw(torch.stack([w1, moved])).split(1)
        places = boxes[index, 0].nonzero()
        (top, left), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
        box = (left, top, right + 1, bottom + 1)
        local = attribute_transfer(bench.generator, w1[None], moved[None], box, layer, blur_px=1.0).image
        found["w_plus"].append(inside_over_outside(after - before, boxes[index]))
        found["in_box"].append(inside_over_outside(local.clamp(-1, 1) - before, boxes[index]))
        read = bench.judge.read(torch.cat([before, local])).parameters
        for name in ("smile", "mouth_open"):
            found[name].append(float((read[1] - read[0])[VECTOR_NAMES.index(name)]))
    return found


def inside_over_outside(difference: Tensor, box: Tensor) -> float:
    """Return the mean size of ``difference (1, C, S, S)`` where ``box (1, S, S)`` is, over that elsewhere."""
    size = difference.abs().mean(1)
    inside, outside = (size * box).sum() / box.sum(), (size * (1 - box)).sum() / (1 - box).sum()
    return float(inside / outside.clamp_min(1e-6))


def part_inpaint(bench: Bench) -> dict[str, list[float]]:
    boxes = mouth_boxes(bench.points, bench.generator.size_px)
    found: dict[str, list[float]] = {"outside": [], "inside": [], "inside_of_flat": []}
    for image, hole in zip(bench.first.split(1), boxes.split(1), strict=True):
        made = inpaint(bench.generator, image, hole, bench.loss, bench.effort).image.clamp(-1, 1)
        hidden = image.flatten(2)[:, :, hole.flatten() > 0]
        flat = float(hidden.sub(hidden.mean(2, keepdim=True)).square().mean().sqrt())
        inside = rms(made - image, hole)
        found["outside"].append(rms(made - image, 1 - hole))
        found["inside"].append(inside)
        found["inside_of_flat"].append(inside / flat)
    return found


def rms(difference: Tensor, where: Tensor) -> float:
    return float(((difference.square() * where).sum() / (where.sum() * difference.shape[1])).sqrt())


def part_style(bench: Bench) -> dict[str, list[float]]:
    content, style = bench.faces[0], bench.in_w_plus[1]
    mixtures = {"": mix(content, style, [row for row in STYLE_ROWS if row < bench.generator.num_ws])}
    for cut in range(1, bench.generator.num_ws // 2 + 1):
        mixtures[f"_after_{cut}"] = style_transfer(content, style, cut)
    for row in range(bench.generator.num_ws):
        mixtures[f"_row_{row}"] = mix(content, style, [row])
    found: dict[str, list[float]] = {}
    for name, mixed in mixtures.items():
        images = [bench.draw(each) for each in (content, mixed, style)]
        points = [bench.judge.read(each).landmarks.flatten(1) for each in images]
        colours = [torch.cat([each.mean((2, 3)), each.std((2, 3))], 1) for each in images]
        found[f"landmarks{name}"], found[f"colours{name}"] = share_of_way(*points), share_of_way(*colours)
        if not name:
            both = zip(found["colours"], found["landmarks"], strict=True)
            found["colours_beyond_landmarks"] = [colour - point for colour, point in both]
    return found


def share_of_way(first: Tensor, between: Tensor, last: Tensor) -> list[float]:
    """Return how far ``between (N, K)`` is on the way from ``first`` to ``last``, of each row."""
    way = last - first
    shares = ((between - first) * way).sum(1) / way.square().sum(1).clamp_min(1e-12)
    return [float(value) for value in shares]


# ---------------------------------------------------------------------------------------------------- results


def summary(values: Sequence[float]) -> dict[str, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"mean": statistics.fmean(values), "error": error, "median": statistics.median(values)}


def judged(name: str, row: Mapping[str, float]) -> str:
    side, bound, _ = CLAIMS[name]
    margin = (row["mean"] - bound) * (1 if side == ">" else -1)
    if abs(margin) <= 2 * row["error"]:
        return "undecided"
    return "holds" if margin > 0 else "does not hold"


def table(results: Mapping[str, Any]) -> str:
    lines = ["| | mean | median | claimed | |", "| --- | --- | --- | --- | --- |"]
    for name, row in results.items():
        side, bound, words = CLAIMS.get(name, ("", 0.0, name))
        claimed = f"{side} {bound:g}" if name in CLAIMS else ""
        verdict = row.get("verdict", "")
        mean = f"{row['mean']:.3f} ± {row['error']:.3f}"
        lines.append(f"| {words} | {mean} | {row['median']:.3f} | {claimed} | {verdict} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--steps", type=int, default=100, help="of the embedding of each picture")
    parser.add_argument("--edit-steps", type=int, default=100, help="of inpainting, on latent and noise each")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    begun = time.perf_counter()
    generator = load_style_generator(options.generator).eval().requires_grad_(False)
    loss = InversionLoss(None)
    ones, others = (
        [sample_parameters("test", index + start) for index in range(options.pairs)]
        for start in (0, options.pairs)
    )
    others, expressive_ones = (
        [replace(face, **expression) for face in others] for expression in (NEUTRAL, EXPRESSIVE)
    )
    pictures = [photos(faces, generator.size_px) for faces in (ones, others, expressive_ones)]
    first = second = expressive = torch.zeros(0)
    in_w_plus = (first, second)
    if set(options.only) != {"inpaint"}:
        first, second = (embedded(generator, loss, images, options.steps) for images in pictures[:2])
    if {"morph", "style"} & set(options.only):
        one, other = (embedded(generator, loss, images, options.steps, "w_plus") for images in pictures[:2])
        in_w_plus = (one, other)
    if "expression" in options.only:
        expressive = differing(generator, loss, second, pictures[1:], options.steps)
    points = torch.stack([torch.as_tensor(landmarks(face), dtype=torch.float32) for face in ones])
    bench = Bench(
        generator,
        load_judge(),
        loss,
        (ones, others),
        pictures[0],
        points,
        (first, second, expressive),
        in_w_plus,
        Effort(options.edit_steps, 0.1, options.edit_steps),
    )
    parts = {"morph": part_morph, "expression": part_expression, "inpaint": part_inpaint, "style": part_style}
    results: dict[str, Any] = {}
    for part in options.only:
        for name, values in parts[part](bench).items():
            if not values:
                print(f"{part}.{name}: in no pair do the ends differ enough")
                continue
            row: dict[str, Any] = {**summary(values), "pairs": [float(f"{value:.4g}") for value in values]}
            if f"{part}.{name}" in CLAIMS:
                row["verdict"] = judged(f"{part}.{name}", row)
            results[f"{part}.{name}"] = row
    seconds = time.perf_counter() - begun
    print(table(results))
    print(f"\n{options.pairs} pairs, {seconds:.0f} s")
    record = {
        "machine": machine(),
        "generator": options.generator,
        "fingerprint": generator.fingerprint(),
        "space": "w",
        "pairs": options.pairs,
        "steps": options.steps,
        "edit_steps": options.edit_steps,
        "seconds": round(seconds, 1),
        "results": results,
    }
    if options.json is not None:
        if options.json.is_file():  # parts that were not measured now stay, if they are of the same setting
            kept = json.loads(options.json.read_text(encoding="utf-8"))
            setting = ("fingerprint", "space", "pairs", "steps", "edit_steps")
            same = all(kept.get(key) == record[key] for key in setting)
            record["results"] = {**(kept["results"] if same else {}), **results}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    main()
