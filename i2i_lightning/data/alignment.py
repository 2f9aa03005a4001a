"""The crop of FFHQ around a face, and the way back into the picture (Karras et al. 2019, appendix C).

A generator of aligned faces can only reproduce, and therefore edit, a face that lies as its own do: eyes and
mouth in their places, upright, at their size. The crop is decided by 68 points of the face.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.types import UserError

POINTS = 68
EYE_LEFT, EYE_RIGHT = slice(36, 42), slice(42, 48)
MOUTH_LEFT, MOUTH_RIGHT = 48, 54
"""Places in the 68 points of Sagonas et al. 2013; left and right are the viewer's."""
PREDICTOR = "shape_predictor_68_face_landmarks.dat"
MOST_SAMPLES = 2**26
"""Samples that a crop is averaged from at the most."""


def face_quad(landmarks: Tensor) -> Tensor:
    """Return the square that FFHQ cuts out around a face.

    With e, from eye to eye, and m, from the eyes to the mouth: the side runs along ``e - rot(m)``, half of it
    is ``max(2.0 |e|, 1.8 |m|)`` long, and the middle is the eyes' plus ``0.1 m``.

    Args:
        landmarks: (68, 2), x and y in pixels counted from 0: the middle of the first one is (0, 0).

    Returns:
        (4, 2): upper left, lower left, lower right, upper right, x and y in pixels, in float64; here the
        corner of the first pixel is (0, 0), and its middle (0.5, 0.5).

    Raises:
        UserError: If these are no 68 points of a face.
    """
    if tuple(landmarks.shape) != (POINTS, 2):
        raise UserError(f"landmarks: shape {tuple(landmarks.shape)}; a face has (68, 2), x and y in pixels")
    points = landmarks.double() + 0.5  # from middles to corners
    left, right = points[EYE_LEFT].mean(0), points[EYE_RIGHT].mean(0)
    middle = (left + right) / 2
    eye_to_eye = right - left
    eye_to_mouth = (points[MOUTH_LEFT] + points[MOUTH_RIGHT]) / 2 - middle
    along = eye_to_eye - _turned(eye_to_mouth)
    length = float(along.norm())
    if not math.isfinite(length) or length == 0:
        raise UserError("landmarks: eyes and mouth lie in one place, or nowhere: not points of a face")
    x = along / length * max(2.0 * float(eye_to_eye.norm()), 1.8 * float(eye_to_mouth.norm()))
    y = _turned(x)
    centre = middle + 0.1 * eye_to_mouth
    return torch.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def _turned(vector: Tensor) -> Tensor:
    """Return ``vector (2,)`` turned by a right angle: along x becomes along y."""
    return torch.stack([-vector[1], vector[0]])


def crop(image: Tensor, quad: Tensor, size_px: int) -> Tensor:
    """Return what ``image`` shows in a square, upright and at another size.

    Pixels are averaged over the area they come from; beyond the image it is continued by its reflection.
    (FFHQ's own images also blur that reflection, which this does not.)

    Args:
        image: (1, C, H, W).
        quad: Corners as of :func:`face_quad`.
        size_px: Side of the result.

    Returns:
        (1, C, size_px, size_px).
    """
    origin, x, y = _axes(quad)
    finer = math.ceil(max(float(x.norm()), float(y.norm())) / size_px)
    finer = max(1, min(finer, math.isqrt(MOST_SAMPLES) // size_px))
    side = size_px * finer
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    places = origin + steps[None, :, None] * x + steps[:, None, None] * y
    return F.avg_pool2d(_sampled(image, places), finer)


def paste(
    image: Tensor, face: Tensor, quad: Tensor, mask: Tensor | None = None, softness: float = 0.1
) -> Tensor:
    """Return ``image`` with ``face`` put back where :func:`crop` took it from.

    Args:
        image: (1, C, H, W).
        face: (1, C, S, S).
        quad: Corners as of :func:`face_quad`.
        mask: (1, 1, S, S) in [0, 1]: the part of the face that is put back; None for all of it.
        softness: Share of the side over which the border of the face fades.

    Returns:
        (1, C, H, W), equal to ``image`` outside of the square.
    """
    height, width = image.shape[-2:]
    left, top = (max(0, math.floor(value)) for value in quad.amin(0).tolist())
    furthest = [math.ceil(value) for value in quad.amax(0).tolist()]
    right, bottom = min(width, furthest[0]), min(height, furthest[1])
    if left >= right or top >= bottom:
        return image.clone()
    origin, x, y = _axes(quad)
    side = face.shape[-1]
    finer = max(1, math.ceil(side / max(1e-9, min(float(x.norm()), float(y.norm())))))
    rows = top + (torch.arange((bottom - top) * finer, dtype=torch.float64) + 0.5) / finer
    columns = left + (torch.arange((right - left) * finer, dtype=torch.float64) + 0.5) / finer
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) - origin
    within = grid @ torch.linalg.inv(torch.stack([x, y]))  # in the square's own units, 0 to 1
    border = torch.minimum(within, 1 - within).amin(-1) / max(softness, 1e-9)
    fading = border.clamp(0, 1)
    alpha = (fading.square() * (3 - 2 * fading)).to(face)[None, None]
    if mask is not None:
        alpha = alpha * _sampled(mask.to(face), within * side)
    drawn = _sampled(face, within * side)
    # Averages of premultiplied colours, as coverage asks for.
    alpha, drawn = F.avg_pool2d(alpha, finer), F.avg_pool2d(drawn * alpha, finer)
    result = image.clone()
    below = result[..., top:bottom, left:right]
    result[..., top:bottom, left:right] = below * (1 - alpha.to(below)) + drawn.to(below)
    return result


def _axes(quad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the upper left corner of a square, and the vectors along its upper and its left side."""
    corners = quad.double().cpu()
    return corners[0], corners[3] - corners[0], corners[1] - corners[0]


def _sampled(image: Tensor, places: Tensor) -> Tensor:
    """Return ``image (1, C, H, W)`` at ``places (h, w, 2)`` in pixels, whose corners have whole numbers."""
    height, width = image.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float64)
    grid = (2 * places / size - 1).to(image)[None]
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def the_one_face(faces: Tensor, name: str) -> Tensor:
    """Return the landmarks of the face in a picture.

    Args:
        faces: (N, 68, 2).
        name: The picture, for the message.

    Raises:
        UserError: If there is none, or there are several.
    """
    if len(faces) == 0:
        raise UserError(
            f"{name}: no face was found; give its landmarks, or an image that shows it from the front"
        )
    if len(faces) > 1:
        raise UserError(f"{name}: {len(faces)} faces were found; crop the image to one")
    return faces[0]


def can_detect() -> bool:
    """Whether :func:`detect` can run here."""
    return find_spec("dlib") is not None and _predictor() is not None


def _predictor() -> Path | None:
    found = find_spec("face_recognition_models")  # its own code wants setuptools, and is not run
    places = [] if found is None else list(found.submodule_search_locations or [])
    files = [Path(place, "models", PREDICTOR) for place in places]
    return next((file for file in files if file.is_file()), None)


def detect(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Return the landmarks of all faces in a picture, by dlib.

    Args:
        pixels: (H, W, 3) uint8, RGB, or (H, W) grey.

    Returns:
        (N, 68, 2), x and y in pixels.

    Raises:
        UserError: If dlib, or the weights it needs, are not installed.
    """
    predictor = _predictor()
    if predictor is None or find_spec("dlib") is None:
        raise UserError("faces are found by dlib, an extra: pip install 'i2i_lightning[faces]'")
    import dlib

    detector: Any = dlib.get_frontal_face_detector()
    locate: Any = dlib.shape_predictor(str(predictor))
    found = [locate(pixels, box) for box in detector(np.ascontiguousarray(pixels), 1)]
    points = [[(part.x, part.y) for part in shape.parts()] for shape in found]
    return torch.tensor(points, dtype=torch.float64).reshape(-1, POINTS, 2)


def landmarks_of(path: Path, pixels: npt.NDArray[Any], key: str) -> Tensor:
    """Return the 68 points of the face in a picture.

    They are read from ``<name>.landmarks.json`` or ``<name>.landmarks.npy`` beside it, where there is one:
    68 pairs of x and y in pixels, or a list of faces of such pairs. Else dlib finds them.

    Args:
        path: The picture's file.
        pixels: (H, W, C).
        key: The option that asks for them, as ``key=value``, for messages.

    Raises:
        UserError: If there is no face, or there are several; if neither file nor dlib is there.
    """
    files = [path.with_name(f"{path.stem}.landmarks{suffix}") for suffix in (".json", ".npy")]
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        return the_one_face(_read_landmarks(file), str(file))
    if not can_detect():
        raise UserError(
            f"{key}: no {files[0].name} beside {path} (68 points x, y), nor dlib to find them: "
            "pip install 'i2i_lightning[faces]'"
        )
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        raise UserError(f"{key}: {path}: faces are found in 8-bit grey or RGB; give {files[0].name}")
    return the_one_face(detect(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), str(path))


def _read_landmarks(file: Path) -> Tensor:
    try:
        if file.suffix == ".npy":
            points = np.load(file, allow_pickle=False).astype(np.float64)
        else:
            points = np.array(json.loads(file.read_text(encoding="utf-8")), dtype=np.float64)
    except (ValueError, TypeError, OSError):
        raise UserError(f"{file}: no list of points, such as [[x, y], ...] in pixels") from None
    if points.size == 0:
        return torch.zeros(0, 68, 2)
    faces = points[None] if points.ndim == 2 else points
    if faces.ndim != 3 or faces.shape[1:] != (68, 2):
        raise UserError(f"{file}: shape {points.shape}; a face has 68 points (68, 2), x and y in pixels")
    return torch.from_numpy(faces)
