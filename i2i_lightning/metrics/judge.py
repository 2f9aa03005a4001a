"""The judge: small networks that read the truth of a toy face off a picture, to score generated ones.

ToyFaces knows everything about its pictures; a generated picture has no truth of its own, but it was made
*for* one. The judge reads it and the reading is compared with what the picture was meant to show:

* **parsing**: IoU of each of the 11 classes and its mean, and the share of pixels in the right class;
* **landmarks**: mean distance of 33 points, in units of the distance between the outer eye corners;
* **parameters**: mean absolute error of each continuous parameter, in units where its whole range is 2, and
  the share of wrong yes-or-no attributes;
* **style**: the probability that the picture is a photo, a cartoon, or neither (a parsing map, say).

Protocol. A picture of any size is resized to 64 px with antialiasing; class scores are resized back to the
size of the true map before the best is taken. The confusion matrix is summed over all pictures before any
IoU, and the mean IoU is over the classes that occur in the truth. Read the scores beside those of real
photos, measured in the same run, because the judge errs on those too: the *ratio* is what a generator is to
be blamed or praised for. The judge was trained on ToyFaces of the train split only, blurred, noisy, badly
compressed and miscoloured ones among them, so that it forgives the look of an output and asks whether the
parts are where they should be. It therefore says little about sharpness or colour; pixel error and style do.
Its floor is not 0: it takes a blank picture for the average face (``blank`` in the held-out scores). Of a
parameter whose held-out error is hardly below ``chance`` (the widths of nose, mouth and ears, the thickness
of lips) it knows nothing. It knows no other faces than these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, LANDMARK_NAMES
from i2i_lightning.data.toyfaces.parameters import RANGES, VECTOR_NAMES
from i2i_lightning.metrics.segmentation import confusion, iou, mean_iou, pixel_accuracy
from i2i_lightning.types import UserError

JUDGE_PX = 64
JUDGE_VERSION = 1
WEIGHTS_NAME = f"judge_v{JUDGE_VERSION}.pt"
SCORES_NAME = f"judge_v{JUDGE_VERSION}.json"

STYLES = ("photo", "cartoon", "neither")
NUM_CONTINUOUS = len(RANGES)
OUTER_EYE_CORNERS = (LANDMARK_NAMES.index("eye_left_outer"), LANDMARK_NAMES.index("eye_right_outer"))


class Reading(NamedTuple):
    """What the judge sees in N pictures.

    ``parsing``: class scores (logits) ``(N, 11, 64, 64)``. ``landmarks``: ``(N, 33, 2)``, x then y, in [0,
    1]. ``parameters``: ``(N, P)`` in the order of ``VECTOR_NAMES``; logits where the name is an attribute,
    values in about [-1, 1] where it is continuous. ``style``: logits ``(N, 3)`` over :data:`STYLES`.
    """

    parsing: Tensor
    landmarks: Tensor
    parameters: Tensor
    style: Tensor


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class JudgeNetwork(nn.Module):
    """One trunk, four answers: a small feature pyramid at 32, 16 and 8 px below a 64 px picture.

    The picture enters as 2x2 blocks of pixels on 32x32 positions, which keeps nearly every convolution at 32
    px or less; one at 64 px sees the picture again and sharpens the borders of the parsing. Landmarks are the
    means of heat maps (soft-argmax; Nibali et al. 2018). The parameters are read off where the points lie, in
    the frame of the eyes, and off the features found at each of them: a gaze or a brow is smaller than a cell
    of the trunk.

    Args:
        base_channels: Width at 32 px; twice that at 16 px, three times at 8 px.
    """

    def __init__(self, base_channels: int = 40) -> None:
        super().__init__()
        fine, middle, coarse = base_channels, 2 * base_channels, 3 * base_channels
        points = len(LANDMARK_NAMES)
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _block(12, fine), _block(fine, fine))
        self.down_middle = nn.Sequential(_block(fine, middle, 2), _block(middle, middle))
        self.down_coarse = nn.Sequential(_block(middle, coarse, 2), _block(coarse, coarse))
        self.lateral_middle = nn.Conv2d(coarse, middle, 1)
        self.merge_middle = _block(middle, middle)
        self.lateral_fine = nn.Conv2d(middle, fine, 1)
        self.merge_fine = _block(fine, fine)
        self.widen = nn.Sequential(nn.Conv2d(fine, 64, 1), nn.PixelShuffle(2), nn.ReLU(inplace=True))
        self.parser = nn.Conv2d(16 + 3, len(CLASS_NAMES), 3, 1, 1)
        self.heat = nn.Conv2d(fine, points, 1)
        self.squeeze = nn.Conv2d(coarse, 16, 1)
        summary = 16 * 64 + points * fine + 4 * points + 2 * fine
        self.normalise = nn.BatchNorm1d(summary)
        self.regressor = nn.Sequential(
            nn.Linear(summary, 192), nn.ReLU(inplace=True), nn.Linear(192, len(VECTOR_NAMES))
        )
        self.stylist = nn.Sequential(
            nn.Linear(2 * fine + coarse, 48), nn.ReLU(inplace=True), nn.Linear(48, len(STYLES))
        )
        # Corrects the regressor once training is over, by least squares; nothing until then, and no gradient.
        self.correction = nn.Linear(summary, NUM_CONTINUOUS)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        self.correction.requires_grad_(False)
        axis = (torch.arange(32, dtype=torch.float32) + 0.5) / 32
        self.register_buffer("axis", axis, persistent=False)

    def forward(self, images: Tensor) -> Reading:
        """Read pictures ``(N, 3, 64, 64)`` in [-1, 1]."""
        return self.read(images)[0]

    def read(self, images: Tensor) -> tuple[Reading, Tensor]:
        """Read pictures, and also return the summary ``(N, D)`` that the parameters are read off."""
        parsing, points, summary, style = self.look(images)
        summary = self.normalise(summary)
        corrected = F.pad(self.correction(summary), (0, len(VECTOR_NAMES) - NUM_CONTINUOUS))
        return Reading(parsing, points, self.regressor(summary) + corrected, style), summary

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all of a reading but the parameters, and in their place the summary as it is at first."""
        fine = self.stem(images)
        middle = self.down_middle(fine)
        coarse = self.down_coarse(middle)
        up = self.merge_middle(middle + F.interpolate(self.lateral_middle(coarse), scale_factor=2.0))
        merged = self.merge_fine(fine + F.interpolate(self.lateral_fine(up), scale_factor=2.0))
        parsing = self.parser(torch.cat([self.widen(merged), images], 1))
        # The factor lets the maps sharpen within few steps.
        heat = (4 * self.heat(merged)).flatten(2).softmax(-1).unflatten(2, (32, 32))
        axis: Tensor = self.axis  # type: ignore[assignment]
        points = torch.stack([(heat.sum(2) * axis).sum(-1), (heat.sum(3) * axis).sum(-1)], -1)
        # The first layer keeps the texture, by which a photo is told from a drawing.
        texture = torch.cat([fine.mean((2, 3)), fine.flatten(2).std(-1)], 1)
        where = points.detach()
        local = F.grid_sample(merged, 2 * where[:, :, None] - 1, align_corners=False)
        places = torch.cat([where, in_eye_frame(where)], -1).flatten(1)
        summary = torch.cat([self.squeeze(coarse).flatten(1), local.flatten(1), places, texture], 1)
        return parsing, points, summary, self.stylist(torch.cat([texture, coarse.mean((2, 3))], 1))


def in_eye_frame(points: Tensor) -> Tensor:
    """Return points ``(N, K, 2)`` in the frame of the outer eye corners: along and across their line.

    The unit is the distance of the corners, so that neither place, size nor roll of the head is left.
    """
    left, right = points[:, OUTER_EYE_CORNERS[0]], points[:, OUTER_EYE_CORNERS[1]]
    along = right - left
    across = torch.stack([-along[:, 1], along[:, 0]], -1)
    moved = points - 0.5 * (left + right)[:, None]
    projected = torch.stack([(moved * along[:, None]).sum(-1), (moved * across[:, None]).sum(-1)], -1)
    return projected / along.square().sum(-1).clamp(min=1e-4)[:, None, None]


def to_judge(images: Tensor) -> Tensor:
    """Bring pictures to what the network reads: float ``(N, 3, 64, 64)`` in [-1, 1].

    Args:
        images: ``(N, 3, H, W)`` RGB, uint8 or float in [-1, 1]; resized with antialiasing (bilinear).

    Raises:
        UserError: If the pictures are not RGB.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"the judge reads RGB pictures (N, 3, H, W), not {tuple(images.shape)}")
    pixels = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
    if pixels.shape[-2:] != (JUDGE_PX, JUDGE_PX):
        pixels = F.interpolate(
            pixels, (JUDGE_PX, JUDGE_PX), mode="bilinear", antialias=True, align_corners=False
        )
    return pixels.clamp(-1, 1)


def landmark_error(pred: Tensor, true: Tensor) -> Tensor:
    """Return each picture's mean point distance over that of its true outer eye corners, ``(N,)``.

    Args:
        pred: ``(N, 33, 2)`` in any one unit.
        true: The same shape and unit.
    """
    left, right = OUTER_EYE_CORNERS
    between = (true[:, left] - true[:, right]).norm(dim=-1)
    error: Tensor = (pred - true).norm(dim=-1).mean(1) / between
    return error


def parameter_error(pred: Tensor, true: Tensor) -> Tensor:
    """Return the mean error of each parameter, ``(P,)``.

    Args:
        pred: ``(N, P)``: values of the continuous parameters, logits of the attributes.
        true: ``(N, P)``: values, which span 2, and 0 or 1.

    Returns:
        The mean absolute error of a continuous parameter, the share of wrong answers of an attribute.
    """
    values = (pred[:, :NUM_CONTINUOUS].clamp(-1, 1) - true[:, :NUM_CONTINUOUS]).abs()
    wrong = ((pred[:, NUM_CONTINUOUS:] > 0) != (true[:, NUM_CONTINUOUS:] > 0.5)).float()
    return torch.cat([values, wrong], 1).mean(0)


class Judge:
    """The trained networks, ready to read: evaluation mode, no gradients.

    Args:
        network: The networks; they stay on the device they are on.
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Judge:
        """Move the networks and return the judge."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def read(self, images: Tensor) -> Reading:
        """Read pictures ``(N, 3, H, W)``, RGB, uint8 or float in [-1, 1]."""
        device = self.network.lateral_fine.weight.device
        with torch.autocast(device.type, enabled=False):
            reading: Reading = self.network(to_judge(images.to(device)))
        return reading

    def parse(self, reading: Reading, height_px: int, width_px: int) -> Tensor:
        """Return the class of each pixel at a size, long ``(N, H, W)``."""
        scores = reading.parsing
        if scores.shape[-2:] != (height_px, width_px):
            scores = F.interpolate(
                scores, (height_px, width_px), mode="bilinear", antialias=True, align_corners=False
            )
        return scores.argmax(1)


class Scores:
    """Sums of the judge's scores over batches of pictures.

    Args:
        judge: Who reads.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.counts = torch.zeros(len(CLASS_NAMES), len(CLASS_NAMES), dtype=torch.long)
        self.landmarks: list[Tensor] = []
        self.parameters: list[Tensor] = []
        self.style: list[Tensor] = []

    def update(self, images: Tensor, parsing: Tensor, landmarks: Tensor, parameters: Tensor) -> None:
        """Score pictures against what they were meant to show.

        Args:
            images: ``(N, 3, H, W)``, RGB, uint8 or float in [-1, 1].
            parsing: True classes, long ``(N, H', W')``.
            landmarks: True points ``(N, 33, 2)`` in [0, 1].
            parameters: True vector ``(N, P)``.
        """
        reading = self.judge.read(images)
        classes = self.judge.parse(reading, parsing.shape[-2], parsing.shape[-1])
        self.counts += confusion(classes, parsing.to(classes.device), len(CLASS_NAMES)).cpu()
        self.landmarks.append(landmark_error(reading.landmarks.cpu(), landmarks.cpu()))
        count = len(images)
        self.parameters.append(parameter_error(reading.parameters.cpu(), parameters.cpu()) * count)
        self.style.append(reading.style.softmax(-1).cpu())

    def compute(self) -> dict[str, Any]:
        """Return the scores as plain numbers: see the module's text for each."""
        errors = (torch.stack(self.parameters).sum(0) / sum(len(style) for style in self.style)).tolist()
        by_class = iou(self.counts).tolist()
        style = torch.cat(self.style)
        taken_for = torch.bincount(style.argmax(1), minlength=len(STYLES)) / len(style)
        return {
            "iou": float(mean_iou(self.counts)),
            "pixel_accuracy": float(pixel_accuracy(self.counts)),
            "landmark_error": float(torch.cat(self.landmarks).mean()),
            "parameter_error": sum(errors[:NUM_CONTINUOUS]) / NUM_CONTINUOUS,
            "attribute_error": sum(errors[NUM_CONTINUOUS:]) / (len(VECTOR_NAMES) - NUM_CONTINUOUS),
            "style": dict(zip(STYLES, style.mean(0).tolist(), strict=True)),
            "taken_for": dict(zip(STYLES, taken_for.tolist(), strict=True)),
            "iou_by_class": dict(zip(CLASS_NAMES, by_class, strict=True)),
            "error_by_parameter": dict(zip(VECTOR_NAMES, errors, strict=True)),
        }


def half_state(network: JudgeNetwork) -> dict[str, Tensor]:
    """Return the weights in half precision, as they are shipped."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }


def save_judge(network: JudgeNetwork, path: str) -> None:
    """Write the weights in half precision, a plain state dict that loads with ``weights_only=True``."""
    torch.save(half_state(network), path)


def judge_from_state(state: Mapping[str, Tensor]) -> Judge:
    """Build a judge from a state dict of any precision."""
    network = JudgeNetwork(base_channels=state["lateral_fine.weight"].shape[0])
    network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    return Judge(network)


@lru_cache(maxsize=1)
def _shipped_state() -> Mapping[str, Tensor]:
    with resources.files("i2i_lightning.metrics").joinpath(WEIGHTS_NAME).open("rb") as file:
        state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def load_judge(device: torch.device | str = "cpu") -> Judge:
    """Return the judge that is shipped with the package, on ``device``."""
    return judge_from_state(_shipped_state()).to(device)


def held_out_scores() -> dict[str, Any]:
    """Return the scores of the shipped judge on the test split, as recorded when it was trained."""
    text = resources.files("i2i_lightning.metrics").joinpath(SCORES_NAME).read_text(encoding="utf-8")
    scores: dict[str, Any] = json.loads(text)
    return scores
