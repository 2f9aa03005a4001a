"""Every figure that is measured, and where a good one lies. Imports nothing: tables need no torch."""

from __future__ import annotations

BETTER = {
    "l1": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "ms_ssim": "higher",
    "sharpness": "near 1",
    "lpips_alex": "lower",
    "lpips_vgg": "lower",
    "fid": "lower",
    "kid": "lower",
    "judge_distance": "lower",
    "pixel_accuracy": "higher",
    "class_accuracy": "higher",
    "mean_iou": "higher",
}
"""Every metric of the suite, and whether a good translation has a lower or a higher one, or one near 1."""

JUDGE_BETTER = {
    "judge_iou": "higher",
    "judge_pixel_accuracy": "higher",
    "judge_landmark_error": "lower",
    "judge_parameter_error": "lower",
    "judge_attribute_error": "lower",
    "judge_style": "higher",
}
"""What the judge of ToyFaces reads off a picture, and which way is better; ``judge_style`` is the share of
pictures that it takes for the style they should have."""

HIDDEN_BETTER = {"rank_first": "higher", "background_change": "lower"}
"""What hidden pairs tell of an unpaired translation on ToyFaces: the share of outputs whose partner is the
nearest of ten, and how many levels of 255 the background changed (``hidden_pairs``)."""

FACES_BETTER = {**JUDGE_BETTER, **HIDDEN_BETTER}
OTHER_BETTER = {**FACES_BETTER, "cycle_l1": "lower"}
"""All that a row of an evaluation may hold beside the metrics of the suite."""

REPORT_BETTER = {
    "judge_iou_ratio": "higher",
    "photo_probability": "higher",
    "cartoon_probability": "higher",
    "parsing_iou": "higher",
    "parsing_pixel_accuracy": "higher",
    "pixel_error": "lower",
}
"""What ``report.json`` and the validation on ToyFaces hold beside those; ``photo_probability`` stands in a
report only where the outputs should be photos."""
