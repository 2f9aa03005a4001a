"""How figures are called and written in tables and pages."""

from __future__ import annotations

import math
import re

from i2i_lightning.sweeps.directions import base_name, better

ARROWS = {"lower": "↓", "higher": "↑", "near 1": "→ 1"}

_NAMES = {
    "judge_iou": "judge IoU",
    "judge_iou_ratio": "IoU over real",
    "judge_landmark_error": "landmark error",
    "judge_parameter_error": "parameter error",
    "judge_attribute_error": "attribute error",
    "judge_pixel_accuracy": "judge pixels",
    "judge_style": "taken for the style",
    "photo_probability": "photo",
    "cartoon_probability": "cartoon",
    "pixel_error": "pixel error",
    "l1": "L1",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "fid": "FID",
    "kid": "KID",
    "judge_distance": "judge distance",
    "mean_iou": "mean IoU",
}

MEANINGS = {
    "judge_iou": "how much of the structure is where the input put it, as the judge reads the output",
    "judge_landmark_error": "how far the parts of the face have drifted, in distances between the eyes",
    "judge_iou_ratio": "the judge's IoU over that of the real pictures",
    "sharpness": "energy of edges and texture as a multiple of the target's: blurred below 1, noisy above",
    "photo_probability": "how likely the judge takes an output for a photo",
    "cartoon_probability": "how likely the judge takes an output for a cartoon",
    "judge_style": "the share of outputs that the judge takes for the style they should have",
    "rank_first": "the share of outputs whose hidden partner is the nearest of ten",
    "pixel_error": "mean absolute difference from the target, levels of 255",
    "kid": "distance of the sets in features of Inception",
    "judge_distance": "distance of the sets in the judge's features",
    "fid": "distance of the sets in features of Inception",
}
"""What a figure that is not in every textbook says."""

REFERENCES = {
    "real": "real pictures",
    "copied_input": "input, copied",
    "class_means": "mean colours, painted",
}
"""What to call the rows of a report that are not a run's."""


def name_of(metric: str) -> str:
    """Return what to call a figure: ``val PSNR``, ``judge IoU``, ``test last SSIM a to b``."""
    base = base_name(metric)
    way = re.search(r"_(ab|ba)$", metric)
    words = [metric.rpartition("/")[0].replace("_", " "), _NAMES.get(base, base.replace("_", " "))]
    words += [f"{way[1][0]} to {way[1][1]}"] if way else []
    return " ".join(word for word in words if word)


def head(metric: str) -> str:
    """Return a figure's name with an arrow to where better is."""
    return f"{name_of(metric)} {ARROWS.get(better(metric) or '', '')}".rstrip()


def digits(values: list[float]) -> int:
    """Return how many decimals show four digits of the largest of some values, or their differences.

    >>> digits([0.70234, 0.25]), digits([21.456, 9.1]), digits([0.00012])
    (3, 2, 6)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0:
        return 1
    return min(8, max(0, 3 - math.ceil(math.log10(largest)) + (1 if largest > 1 else 0)))


def figure(value: float | None, deviation: float | None, decimals: int) -> str:
    """Write a mean and, if there is one, its deviation: ``0.702 ± 0.011``; a dash for nothing."""
    if value is None:
        return "–"
    text = f"{value:.{decimals}f}"
    return text if deviation is None else f"{text} ± {deviation:.{decimals}f}"
