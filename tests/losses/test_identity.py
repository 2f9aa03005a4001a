"""The distance of identities: its closed form, what of an image is looked at, modes and precisions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.losses.identity import CROP, Box, identity_loss
from i2i_lightning.types import UserError
from tests.losses.recognisers import identity


def pictures(number: int = 2, px: int = 64, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, channels, px, px, generator=generator, dtype=torch.float64) * 2 - 1


def close(left: Tensor, right: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_it_is_one_minus_the_cosine() -> None:
    angles = torch.tensor([0.0, 0.3, torch.pi / 2, torch.pi], dtype=torch.float64)
    turned = torch.stack([angles.cos(), angles.sin()], 1)
    fixed = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    close(identity_loss(turned, fixed), 1 - angles.cos())
    distance = identity().double()
    images, targets = pictures(3), pictures(3, seed=1)
    left, right = (distance.network(distance.faces(each)) for each in (images, targets))
    expected = torch.stack([1 - F.cosine_similarity(a, b, 0) for a, b in zip(left, right, strict=True)])
    close(distance(images, targets), expected)
    assert (expected > 1e-3).all()
    close(distance(images, images), torch.zeros(3, dtype=torch.float64))
    kept = distance.features(targets[:1])
    close(identity_loss(distance.features(images), kept), distance(images, targets[:1].expand(3, -1, -1, -1)))


def test_the_gradient_is_that_of_the_closed_form() -> None:
    distance = identity().double()
    target = pictures(1, 32, seed=1)
    image = pictures(1, 32).requires_grad_()
    distance(image, target).sum().backward()
    assert image.grad is not None
    assert not any(p.requires_grad for p in distance.parameters())
    step = torch.zeros_like(image)
    step[0, 1, 16, 17] = 1e-5  # inside of the crop
    with torch.no_grad():
        slope = (distance(image + step, target) - distance(image - step, target)) / 2e-5
    close(image.grad[:, 1, 16, 17], slope, 1e-7)
    assert slope.abs() > 1e-5
    assert image.grad[..., 0, 0].abs().sum() == 0  # outside of it


# ------------------------------------------------------------------------------------------------------- crop


def test_the_crop_at_256_px_is_that_of_psp() -> None:
    images = pictures(1, 256)
    faces = identity(face_px=112).faces(images)
    close(faces, F.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], (112, 112)))
    assert CROP == (35, 223, 32, 220)


@pytest.mark.parametrize("px", [32, 64, 512, 1024])
def test_other_sizes_show_the_same_part(px: int) -> None:
    """An image that varies slowly, drawn at another size, gives nearly the same face."""

    def drawn(side: int) -> Tensor:
        place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        return torch.stack([place[:, None].expand(side, side), place.expand(side, side)])[None]

    distance = identity(face_px=112)
    assert (distance.faces(drawn(px)) - distance.faces(drawn(256))).abs().max() < 0.6 / min(px, 256)
    moved = identity(face_px=112, crop=(43, 231, 32, 220))
    assert (moved.faces(drawn(px)) - distance.faces(drawn(px)))[:, 0].mean() == pytest.approx(
        8 / 256, rel=0.1
    )


def test_images_of_1024_px_are_averaged_to_256_first() -> None:
    images = pictures(1, 1024)
    distance = identity(face_px=112)
    close(distance.faces(images), distance.faces(F.avg_pool2d(images, 4)))


def test_without_a_crop_whole_images_are_seen() -> None:
    distance = identity(face_px=112, crop=None)
    images = pictures(1, 112)
    assert torch.equal(distance.faces(images), images)
    close(distance.faces(pictures(1, 224)), F.avg_pool2d(pictures(1, 224), 2))
    assert "whole images" in distance.protocol
    assert "[35, 223, 32, 220] of 256 px" in identity().protocol


@pytest.mark.parametrize(
    "crop", [(35, 35, 32, 220), (-1, 223, 32, 220), (35, 257, 32, 220), (35, 223, 220, 32)]
)
def test_impossible_crops_are_refused(crop: Box) -> None:
    with pytest.raises(UserError, match=r"^crop=\[.*\]: top, bottom, left, right within 0 to 256"):
        identity(crop=crop)


# -------------------------------------------------------------------------------------- images and precisions


def test_grey_images_are_repeated() -> None:
    distance = identity().double()
    grey = pictures(2, channels=1)
    close(distance.features(grey), distance.features(grey.repeat(1, 3, 1, 1)), 0)


def test_it_stays_in_evaluation_mode_and_its_images_apart() -> None:
    distance = identity().double()
    holder = nn.ModuleList([distance]).train()
    assert not any(module.training for module in distance.modules())
    images = pictures(3)
    together = holder[0].features(images)
    close(together, torch.cat([distance.features(image[None]) for image in images]))


def test_it_computes_in_full_precision_under_autocast() -> None:
    distance = identity()
    images = pictures().float()
    plain = distance.network(distance.faces(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance.features(images), plain)
        assert distance.features(images.bfloat16()).dtype == torch.float32
    halves = [plain.bfloat16(), plain.bfloat16().flip(0)]
    assert identity_loss(*halves).dtype == torch.float32
    assert distance.double()(pictures(), pictures(seed=1)).dtype == torch.float64
