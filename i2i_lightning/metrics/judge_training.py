"""How the judge is trained: on toy faces of the train split, spoilt in the ways of generated pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, FLIPPED_LANDMARKS
from i2i_lightning.data.toyfaces.parameters import VECTOR_NAMES, flip_vector
from i2i_lightning.metrics.judge import (
    JUDGE_PX,
    NUM_CONTINUOUS,
    STYLES,
    Judge,
    JudgeNetwork,
    Reading,
    Scores,
    half_state,
)
from i2i_lightning.types import UserError


@dataclass
class Faces:
    """Drawn faces, pictures by kind uint8 ``(N, 3, H, W)``, with the truth that the judge is asked for."""

    pictures: dict[str, Tensor]
    parsing: Tensor
    landmarks: Tensor
    parameters: Tensor

    def __len__(self) -> int:
        return len(self.parsing)


def draw_faces(
    split: str, count: int, size_px: int, kinds: tuple[str, ...], say: Callable[[str], None]
) -> Faces:
    """Draw the first ``count`` faces of a split in some kinds (``photo``, ``cartoon``, ``regions``, ...)."""
    faces = ToyFaces(split, size_px, (*kinds, "parsing"), count)
    pictures = {kind: torch.empty(count, 3, size_px, size_px, dtype=torch.uint8) for kind in kinds}
    parsing = torch.empty(count, size_px, size_px, dtype=torch.uint8)
    landmarks, parameters = [], []
    for index in range(count):
        item = faces[index]
        for kind in kinds:
            pictures[kind][index] = torch.from_numpy(
                np.broadcast_to(item[kind], (3, size_px, size_px)).copy()
            )
        parsing[index] = torch.from_numpy(item["parsing"])
        landmarks.append(torch.from_numpy(item["landmarks"]))
        parameters.append(torch.from_numpy(item["parameters"]))
        if (index + 1) % 1000 == 0:
            say(f"drew {index + 1} of {count} {split} faces")
    return Faces(pictures, parsing, torch.stack(landmarks), torch.stack(parameters))


def _uniform(low: float, high: float, *shape: int, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def _dct_matrix() -> Tensor:
    """The orthonormal DCT-II of 8 samples, ``(8, 8)``."""
    k, n = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    matrix[0] /= math.sqrt(2)
    return matrix


def _blur(images: Tensor, sigma: float) -> Tensor:
    taps = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    rows = F.conv2d(F.pad(images, (4, 4, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(rows, (0, 0, 4, 4), mode="replicate"), kernel.transpose(2, 3), groups=3)


def _coarse(images: Tensor, size_px: int, mode: str) -> Tensor:
    small = F.interpolate(images, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    if mode == "nearest":
        return F.interpolate(small, images.shape[-2:], mode="nearest")
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def _compress(images: Tensor, step: float) -> Tensor:
    """Quantise the 8x8 DCT ever more coarsely towards high frequencies, as JPEG does."""
    dct = _dct_matrix()
    blocks = images.unfold(2, 8, 8).unfold(3, 8, 8)
    frequency = torch.arange(8.0)[:, None] + torch.arange(8.0)
    table = step * (1 + 0.7 * frequency)
    coefficients = dct @ blocks @ dct.T
    blocks = dct.T @ (torch.round(coefficients / table) * table) @ dct
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


def _recolour(images: Tensor, rng: torch.Generator) -> Tensor:
    n = len(images)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _uniform(0.3, 1.4, n, 1, 1, 1, rng=rng)
    images = images * _uniform(0.7, 1.25, n, 3, 1, 1, rng=rng) + _uniform(-0.2, 0.2, n, 3, 1, 1, rng=rng)
    # Slow stains, as of a generator that has the hue of a region wrong.
    stain = _uniform(-0.35, 0.35, n, 3, 4, 4, rng=rng)
    return images + F.interpolate(stain, images.shape[-2:], mode="bicubic", align_corners=False)


def _checkerboard(images: Tensor, rng: torch.Generator) -> Tensor:
    """Add a pattern that repeats every 2 or 4 pixels, as transposed convolutions leave behind."""
    period = 2 if torch.rand((), generator=rng) < 0.5 else 4
    tile = torch.randn(len(images), 3, period, period, generator=rng)
    repeats = images.shape[-1] // period
    return images + tile.repeat(1, 1, repeats, repeats) * _uniform(0.02, 0.12, len(images), 1, 1, 1, rng=rng)


def _noise(images: Tensor, rng: torch.Generator) -> Tensor:
    grain = torch.randn(images.shape, generator=rng)
    return images + grain * _uniform(0.02, 0.16, len(images), 1, 1, 1, rng=rng)


def _melt(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mix with a smeared copy: what a network makes of parts it is unsure of."""
    share = _uniform(0.2, 0.7, len(images), 1, 1, 1, rng=rng)
    return images + share * (_coarse(images, 12, "bilinear") - images)


def spoil(images: Tensor, rng: torch.Generator) -> Tensor:
    """Spoil a batch of pictures ``(N, 3, H, W)`` in [-1, 1]; nearly half of them stay as they are.

    Each defect is drawn with one strength per batch and falls on a random part of it.
    """
    n = len(images)

    def number(low: float, high: float) -> float:
        return float(_uniform(low, high, rng=rng))

    defects: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = (
        (0.25, lambda x: _melt(x, rng)),
        (0.35, lambda x: _recolour(x, rng)),
        (0.30, lambda x: _blur(x, number(0.4, 1.5))),
        (0.20, lambda x: _coarse(x, int(number(20, 48)), "nearest" if number(0, 1) < 0.3 else "bilinear")),
        (0.20, lambda x: _checkerboard(x, rng)),
        (0.30, lambda x: _noise(x, rng)),
        (0.25, lambda x: _compress(x, number(0.05, 0.5))),
    )
    clean = torch.rand(n, generator=rng) < 0.45
    spoilt = images.clone()
    for share, defect in defects:
        chosen = torch.nonzero((torch.rand(n, generator=rng) < share) & ~clean).flatten()
        if len(chosen):
            spoilt[chosen] = defect(spoilt[chosen])
    return spoilt.clamp(-1, 1)


class _Batches:
    """Draws training batches: half photos, not quite half cartoons, a few that are neither."""

    def __init__(self, faces: Faces, batch_size: int, seed: int) -> None:
        self.faces = faces
        self.batch_size = batch_size
        self.rng = torch.Generator().manual_seed(seed)
        signs = flip_vector(np.ones(len(VECTOR_NAMES), dtype=np.float32))
        self.signs = torch.from_numpy(signs)

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return pictures, parsing, landmarks, parameters and style of one batch."""
        faces, rng, n = self.faces, self.rng, self.batch_size
        index = torch.randint(len(faces), (n,), generator=rng)
        draw = torch.rand(n, generator=rng)
        style = torch.where(draw < 0.5, 0, torch.where(draw < 0.94, 1, 2))
        others = [kind for kind in faces.pictures if kind not in STYLES]
        images = faces.pictures["photo"][index].float()
        images[style == 1] = faces.pictures["cartoon"][index[style == 1]].float()
        for position in torch.nonzero(style == 2).flatten().tolist():
            kind = others[int(torch.randint(len(others), (), generator=rng))]
            images[position] = faces.pictures[kind][index[position]].float()
        images = spoil(images / 127.5 - 1, rng)
        parsing, landmarks, parameters = (
            faces.parsing[index].long(),
            faces.landmarks[index],
            faces.parameters[index],
        )
        flipped = torch.rand(n, generator=rng) < 0.5
        images[flipped] = images[flipped].flip(-1)
        parsing[flipped] = parsing[flipped].flip(-1)
        mirrored = landmarks[:, list(FLIPPED_LANDMARKS)] * torch.tensor([-1.0, 1.0]) + torch.tensor(
            [1.0, 0.0]
        )
        landmarks = torch.where(flipped[:, None, None], mirrored, landmarks)
        parameters = torch.where(flipped[:, None], parameters * self.signs, parameters)
        return images, parsing, landmarks, parameters, style


def visible(parameters: Tensor, style: Tensor) -> Tensor:
    """Return 1 where a continuous parameter can be seen and 0 where not, ``(N, 26)``."""
    seen = torch.ones_like(parameters[:, :NUM_CONTINUOUS])
    dark = parameters[:, VECTOR_NAMES.index("is_sunglasses")] > 0.5
    for name in ("gaze_x", "gaze_y", "eye_open", "eye_size", "eye_slant"):
        seen[dark, VECTOR_NAMES.index(name)] = 0
    for name in ("light_x", "light_y"):
        seen[style != 0, VECTOR_NAMES.index(name)] = 0
    seen[style == 2] = 0
    return seen


def judge_loss(
    reading: Reading,
    parsing: Tensor,
    landmarks: Tensor,
    parameters: Tensor,
    style: Tensor,
    class_weights: Tensor,
) -> Tensor:
    """Return the sum of the training losses, 0-d; a picture that is no face of either style has only a style.

    Weighted cross-entropy of the parsing, mean point distance times 40, L1 of the continuous parameters,
    binary cross-entropy of the attributes, cross-entropy of the style times 0.3. Values that cannot be seen
    are left out: the gaze behind sunglasses, the light in a cartoon.
    """
    face = style < 2
    loss = F.cross_entropy(reading.parsing[face], parsing[face], class_weights)
    loss = loss + 40 * (reading.landmarks[face] - landmarks[face]).square().sum(-1).add(1e-6).sqrt().mean()
    seen = visible(parameters, style)
    error = (reading.parameters[:, :NUM_CONTINUOUS] - parameters[:, :NUM_CONTINUOUS]).abs()
    loss = loss + 3 * (error * seen).sum() / seen.sum().clamp(min=1)
    attributes = parameters[face, NUM_CONTINUOUS:]
    loss = loss + 2 * F.binary_cross_entropy_with_logits(
        reading.parameters[face, NUM_CONTINUOUS:], attributes
    )
    return loss + 0.3 * F.cross_entropy(reading.style, style)


def train_judge(
    num_faces: int = 5000,
    steps: int = 5600,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
    base_channels: int = 40,
    say: Callable[[str], None] = print,
) -> JudgeNetwork:
    """Train the networks from nothing on faces of the train split; the same seed gives the same judge.

    Args:
        num_faces: Faces drawn, each as photo, cartoon and as something that is neither.
        steps: Optimisation steps of AdamW under a one-cycle rate.
        batch_size: Pictures per step.
        learning_rate: The highest rate.
        seed: Of weights and batches.
        base_channels: Width of the networks.
        say: Where progress goes.

    Raises:
        UserError: If a number is impossible.
    """
    for key, value in (("faces", num_faces), ("steps", steps), ("batch-size", batch_size)):
        if value < 2:
            raise UserError(f"--{key} {value}: give at least 2")
    faces = draw_faces("train", num_faces, JUDGE_PX, ("photo", "cartoon", "regions", "palette", "edges"), say)
    share = torch.bincount(faces.parsing.flatten().long(), minlength=len(CLASS_NAMES)).float()
    class_weights = (share.mean() / share.clamp(min=1)) ** 0.25
    class_weights = class_weights / class_weights.mean()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Channels last in memory is a sixth faster here.
        network = JudgeNetwork(base_channels).to(memory_format=torch.channels_last)
    batches = _Batches(faces, batch_size, seed + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    started, recent = time.monotonic(), 0.0
    network.train()
    for step in range(1, steps + 1):
        images, parsing, landmarks, parameters, style = batches.next()
        loss = judge_loss(
            network(images.contiguous(memory_format=torch.channels_last)),
            parsing,
            landmarks,
            parameters,
            style,
            class_weights,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        recent += float(loss.detach())
        if step % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            say(f"step {step} of {steps}: loss {recent / 100:.3f}, {minutes:.1f} min")
            recent = 0.0
    network.eval()
    # What is shipped is half precision: correct that.
    network.load_state_dict(half_state(network))
    say("correcting the regressor by least squares")
    correct_regressor(network, _Batches(faces, 50, seed + 2), num_batches=max(1, num_faces * 12 // 250))
    return network


@torch.no_grad()
def correct_regressor(network: JudgeNetwork, batches: _Batches, num_batches: int) -> None:
    """Fit the last, linear correction of the continuous parameters by ridge regression, in place.

    Minimises ``sum |truth - regressor - W s|^2 + lambda |W|^2`` over batches of training pictures; ``s`` is
    the normalised summary of a picture and ``lambda`` 0.03 per picture. Gradient descent leaves these errors
    behind: the normal equations do not. What cannot be seen in a picture asks for no correction.
    """
    width = network.correction.in_features + 1
    gram = torch.zeros(width, width, dtype=torch.float64)
    target = torch.zeros(width, NUM_CONTINUOUS, dtype=torch.float64)
    pictures = 0
    for _ in range(num_batches):
        images, _, _, parameters, style = batches.next()
        reading, summary = network.read(images)
        face = style < 2
        seen = visible(parameters, style)
        residual = (parameters - reading.parameters)[:, :NUM_CONTINUOUS] * seen
        inputs = F.pad(summary[face], (0, 1), value=1.0).double()
        gram += inputs.T @ inputs
        target += inputs.T @ residual[face].double()
        pictures += len(inputs)
    penalty = torch.full((width,), 0.03 * pictures, dtype=torch.float64)
    penalty[-1] = 0
    solution = torch.linalg.solve(gram + penalty.diag(), target).float()
    network.correction.weight.add_(solution[:-1].T)
    network.correction.bias.add_(solution[-1])


def score_judge(judge: Judge, count: int = 200, sizes_px: tuple[int, ...] = (64, 128)) -> dict[str, Any]:
    """Score a judge on real photos and cartoons of the test split: by kind and size, as in ``photo_64``.

    ``blank`` are the scores of grey pictures. ``chance`` is the error of each parameter for one who always
    gives the same, best answer.
    """
    results: dict[str, Any] = {}
    for size_px in sizes_px:
        faces = draw_faces("test", count, size_px, ("photo", "cartoon"), lambda _: None)
        for kind in ("photo", "cartoon"):
            scores = Scores(judge)
            for start in range(0, count, 50):
                cut = slice(start, start + 50)
                scores.update(
                    faces.pictures[kind][cut], faces.parsing[cut], faces.landmarks[cut], faces.parameters[cut]
                )
            results[f"{kind}_{size_px}"] = scores.compute()
    faces = draw_faces("test", count, JUDGE_PX, (), lambda _: None)
    scores, truth = Scores(judge), faces.parameters
    scores.update(torch.zeros(count, 3, JUDGE_PX, JUDGE_PX), faces.parsing, faces.landmarks, truth)
    results["blank"] = scores.compute()
    # The median is the best constant in absolute error, and for zeros and ones the more frequent of the two.
    errors = (truth - truth.median(0).values).abs().mean(0).tolist()
    results["chance"] = {"error_by_parameter": dict(zip(VECTOR_NAMES, errors, strict=True))}
    return results
