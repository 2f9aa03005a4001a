"""The crop of FFHQ: its square by hand, its pixels where they are known, and the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.data import alignment
from i2i_lightning.data.alignment import crop, detect, face_quad, paste, the_one_face
from i2i_lightning.types import UserError


def landmarks(eyes: float = 40.0, mouth: float = 44.0, centre: tuple[float, float] = (80, 70)) -> Tensor:
    """Points of an upright face: the distance of its eyes, how far below the mouth is, the eyes' middle."""
    points = torch.zeros(68, 2, dtype=torch.float64)
    x, y = centre
    points[36:42] = torch.tensor([x - eyes / 2, y])
    points[42:48] = torch.tensor([x + eyes / 2, y])
    points[48] = torch.tensor([x - 15, y + mouth])
    points[54] = torch.tensor([x + 15, y + mouth])
    return points


def turned(points: Tensor, degrees: float, about: Tensor) -> Tensor:
    a = math.radians(degrees)
    rotation = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    return (points - about) @ rotation.T + about


def smooth(height: int, width: int, channels: int = 3) -> Tensor:
    """A picture without detail finer than some pixels, so that resampling twice loses little."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    waves = [(0.11, 0.05, 0.0), (-0.04, 0.09, 1.0), (0.07, -0.08, 2.0)]
    return torch.stack([torch.sin(a * x + b * y + c) for a, b, c in waves[:channels]])[None]


def psnr(difference: Tensor) -> float:
    return float(10 * torch.log10(4 / difference.square().mean()))


def test_square_of_an_upright_face() -> None:
    # Eye to eye 40, eyes to mouth 44: half a side is max(80, 79.2), the middle 4.4 below the eyes.
    quad = face_quad(landmarks())
    expected = [[0, -5.6], [0, 154.4], [160, 154.4], [160, -5.6]]
    torch.testing.assert_close(quad, torch.tensor(expected, dtype=torch.float64) + 0.5)
    long = face_quad(landmarks(mouth=60))
    assert float((long[3] - long[0]).norm()) == pytest.approx(2 * 1.8 * 60)


def test_square_turns_and_grows_with_the_face() -> None:
    points = landmarks()
    about = torch.tensor([10.0, 20.0], dtype=torch.float64)
    in_corners = turned(face_quad(points), 25, about + 0.5)
    torch.testing.assert_close(face_quad(turned(points, 25, about)), in_corners)
    torch.testing.assert_close(face_quad(points * 3 + 1), face_quad(points) * 3)


def test_square_is_that_of_the_published_script() -> None:
    # Its equations, in numpy and in its order, for a face whose mouth is not below its eyes' middle.
    rng = np.random.default_rng(0)
    lm = landmarks(centre=(120, 100)).numpy() + rng.normal(0, 6, (68, 2))
    eye_left, eye_right = lm[36:42].mean(0), lm[42:48].mean(0)
    eye_avg, e = (eye_left + eye_right) * 0.5, eye_right - eye_left
    m = (lm[48] + lm[54]) * 0.5 - eye_avg
    x = e - np.flipud(m) * [-1, 1]
    x /= np.hypot(*x)
    x *= max(np.hypot(*e) * 2.0, np.hypot(*m) * 1.8)
    y = np.flipud(x) * [-1, 1]
    c = eye_avg + m * 0.1
    expected = np.stack([c - x - y, c - x + y, c + x + y, c + x - y])
    quad = expected + 0.5  # which the script adds where it cuts
    np.testing.assert_allclose(face_quad(torch.from_numpy(lm)).numpy(), quad, rtol=1e-12)

    image = smooth(220, 240, 1)
    cut = Image.fromarray(image[0, 0].numpy()).transform(
        (176, 176), Image.Transform.QUAD, quad.flatten().tolist(), Image.Resampling.BILINEAR
    )
    ours = crop(image, torch.from_numpy(quad), 176)[0, 0].numpy()
    np.testing.assert_allclose(ours, np.asarray(cut), atol=1e-4)


def test_crop_of_whole_pixels_is_a_window() -> None:
    image = torch.randn(1, 3, 50, 60, dtype=torch.float64)
    quad = torch.tensor([[10.0, 5], [10, 37], [42, 37], [42, 5]])
    torch.testing.assert_close(crop(image, quad, 32), image[..., 5:37, 10:42])
    quarter = image[..., 5:37, 10:42].reshape(1, 3, 16, 2, 16, 2).mean((3, 5))
    torch.testing.assert_close(crop(image, quad, 16), quarter)
    beyond = torch.tensor([[-4.0, -2], [-4, 14], [12, 14], [12, -2]])
    torch.testing.assert_close(crop(image, beyond, 16)[..., 2:, 4:], image[..., :14, :12])
    torch.testing.assert_close(crop(image, beyond, 16)[..., 2:, :4], image[..., :14, :4].flip(-1))


@pytest.mark.parametrize(("degrees", "size_px"), [(0, 128), (17, 128), (-35, 200), (17, 64)])
def test_there_and_back(degrees: float, size_px: int) -> None:
    image = smooth(240, 260)
    points = landmarks(30, 33, (130, 110))
    quad = face_quad(turned(points, degrees, points[36]))
    face = crop(image, quad, size_px)
    back = paste(image * 0, face, quad)
    inside = paste(torch.zeros(1, 1, 240, 260), torch.ones(1, 1, size_px, size_px), quad) == 1
    assert inside.float().mean() > 0.1
    assert psnr((back - image)[inside.expand_as(image)]) > 35
    changed = paste(image, face, quad)
    assert psnr(changed - image) > 40
    outside = paste(torch.zeros(1, 1, 240, 260), torch.ones(1, 1, size_px, size_px), quad) == 0
    assert torch.equal(changed[outside.expand_as(image)], image[outside.expand_as(image)])


def test_border_of_what_is_pasted_is_soft() -> None:
    quad = torch.tensor([[20.0, 20], [20, 84], [84, 84], [84, 20]])
    pasted = paste(torch.zeros(1, 1, 100, 100), torch.ones(1, 1, 64, 64), quad, softness=0.25)
    line = pasted[0, 0, 52]
    assert (line[:20] == 0).all()
    assert (line[40:64] == 1).all()
    rise = line[20:36]
    assert (rise.diff() > 0).all()
    assert float(rise.diff().max()) < 0.15
    torch.testing.assert_close(line[20:84], line[20:84].flip(0))


def test_only_the_mask_is_pasted() -> None:
    quad = torch.tensor([[20.0, 20], [20, 84], [84, 84], [84, 20]])
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 1
    pasted = paste(torch.zeros(1, 1, 100, 100), torch.ones(1, 1, 64, 64), quad, mask)
    places = (pasted[0, 0] > 0).nonzero()
    assert (places.min(), places.max()) == (40, 59)
    assert (pasted[..., 40:60, 40:60] == 1).all()


def test_a_face_at_the_rim_or_outside() -> None:
    image = smooth(60, 60)
    quad = face_quad(landmarks(20, 22, (4, 4)))
    changed = paste(image, crop(image, quad, 32), quad)
    assert changed.shape == image.shape
    assert psnr(changed - image) > 30
    away = quad + 500
    assert torch.equal(paste(image, torch.ones(1, 3, 32, 32), away), image)


def test_slips() -> None:
    with pytest.raises(UserError, match=r"shape \(5, 2\); a face has \(68, 2\)"):
        face_quad(torch.zeros(5, 2))
    for points in (torch.zeros(68, 2), torch.full((68, 2), torch.nan)):
        with pytest.raises(UserError, match=": not points of a face"):
            face_quad(points)
    with pytest.raises(UserError, match=r"^a.png: no face was found"):
        the_one_face(torch.zeros(0, 68, 2), "a.png")
    with pytest.raises(UserError, match=r"^a.png: 2 faces were found; crop the image to one$"):
        the_one_face(torch.zeros(2, 68, 2), "a.png")
    assert the_one_face(torch.ones(1, 68, 2), "a.png").shape == (68, 2)


def test_without_dlib_one_line_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "find_spec", lambda name: None)
    assert not alignment.can_detect()
    with pytest.raises(UserError, match=r"an extra: pip install 'i2i_lightning\[faces\]'"):
        detect(np.zeros((8, 8, 3), np.uint8))
