"""ADA: what each transform does and how often, exactness where it is promised, and the controller's rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from i2i_lightning.losses.adaptive_augmentation import AdaptiveAugmentation, AdaptiveStrength
from i2i_lightning.losses.adaptive_transforms import (
    BLITS,
    COLOUR,
    GEOMETRY,
    SYM6,
    TRANSFORMS,
    augment_adaptively,
    blit,
    check_transforms,
    draw_blits,
    draw_colours,
    draw_geometry,
    resample,
)
from i2i_lightning.losses.regularizers import r1_penalty
from i2i_lightning.types import UserError

MANY = 4000
SIZE = (16, 16)


def draws(name: str, p: float = 1.0, size: tuple[int, int] = SIZE) -> Tensor:
    """Return many draws of the maps of one transform."""
    torch.manual_seed(0)
    like, chance = torch.zeros(MANY, dtype=torch.float64), torch.tensor(p, dtype=torch.float64)
    if name in BLITS:
        return draw_blits(like, chance, [name], size)
    if name in GEOMETRY:
        return draw_geometry(like, chance, [name], size)[0]
    return draw_colours(like, chance, [name])


def unit(width: int) -> Tensor:
    return torch.eye(width, dtype=torch.float64)


def check_normal(values: Tensor, deviation: float) -> None:
    """Check mean, deviation and kurtosis of N(0, deviation)."""
    assert values.mean().item() == pytest.approx(0, abs=4 * deviation / MANY**0.5)
    assert values.std().item() == pytest.approx(deviation, rel=0.06)
    assert (values / deviation).pow(4).mean().item() == pytest.approx(3, abs=0.5)


def check_uniform(values: Tensor, most: float) -> None:
    """Check U(-most, most) by its quartiles."""
    assert values.abs().max() <= most
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)) / most
    torch.testing.assert_close(quartiles, quartiles.new_tensor([-0.5, 0, 0.5]), atol=0.06, rtol=0)


# ---------------------------------------------------------------------------------------------- distributions


def test_flip_mirrors_half_of_those_chosen() -> None:
    maps = draws("flip")
    assert maps[:, 0, 0].mean().item() == pytest.approx(0, abs=0.06)
    torch.testing.assert_close(maps[:, 0, 0].abs(), torch.ones(MANY, dtype=torch.float64), atol=0, rtol=0)
    assert draws("flip", 0.4)[:, 0, 0].lt(0).double().mean().item() == pytest.approx(0.2, abs=0.03)


def test_quarter_turns_are_equally_likely() -> None:
    maps = draws("rotate_90")
    kinds, counts = maps.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 4
    assert counts.double().div(MANY).sub(0.25).abs().max() < 0.03
    assert set(maps.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    torch.testing.assert_close(torch.linalg.det(maps), torch.ones(MANY, dtype=torch.float64))


def test_whole_translations_are_uniform() -> None:
    maps = draws("translate_whole", size=(16, 64))
    x, y = maps[:, 0, 2], maps[:, 1, 2]
    assert set(x.tolist()) == set(range(-8, 9))
    assert set(y.tolist()) == {-2, -1, 0, 1, 2}
    # Rounding gives the outermost half of the share.
    counts = torch.stack([(y == step).double().mean() for step in range(-2, 3)])
    torch.testing.assert_close(counts, counts.new_tensor([1, 2, 2, 2, 1]) / 8, atol=0.03, rtol=0)


def test_scale_and_stretch_are_lognormal() -> None:
    maps = draws("scale")
    assert torch.equal(maps[:, 0, 0], maps[:, 1, 1])
    check_normal(maps[:, 0, 0].log2(), 0.2)
    maps = draws("stretch")
    check_normal(maps[:, 0, 0].log2(), 0.2)
    torch.testing.assert_close(maps[:, 0, 0] * maps[:, 1, 1], torch.ones(MANY, dtype=torch.float64))


def test_rotations_are_uniform_and_as_likely_as_the_others() -> None:
    maps = draws("rotate")  # the sum of two uniform angles is uniform on the circle
    angle = torch.atan2(maps[:, 0, 1], maps[:, 0, 0])
    check_uniform(angle, math.pi)
    torch.testing.assert_close(torch.linalg.det(maps), torch.ones(MANY, dtype=torch.float64))
    rotated = (draws("rotate", 0.4) != unit(3)).flatten(1).any(1)
    assert rotated.double().mean().item() == pytest.approx(0.4, abs=0.03)


def test_fractional_translations_are_normal() -> None:
    maps = draws("translate", size=(16, 64))
    check_normal(maps[:, 0, 2] / 64, 1 / 8)
    check_normal(maps[:, 1, 2] / 16, 1 / 8)


def test_brightness_is_added() -> None:
    maps = draws("brightness")
    check_normal(maps[:, 0, 3], 0.2)
    assert torch.equal(maps[:, 0, 3], maps[:, 2, 3])
    assert torch.equal(maps[:, :, :3], unit(4)[:, :3].expand(MANY, 4, 3))


def test_contrast_is_lognormal() -> None:
    maps = draws("contrast")
    check_normal(maps[:, 0, 0].log2(), 0.5)
    assert torch.equal(maps, torch.diag_embed(maps.diagonal(dim1=1, dim2=2)))
    assert (maps[:, 3, 3] == 1).all()


def test_luma_flip_mirrors_the_grey_axis_alone() -> None:
    maps = draws("luma_flip")
    grey, across = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, -3, 2], dtype=torch.float64)
    sign = (maps[:, :3, :3] @ grey)[:, 0]
    torch.testing.assert_close(sign.abs(), torch.ones(MANY, dtype=torch.float64))
    assert sign.mean().item() == pytest.approx(0, abs=0.06)
    torch.testing.assert_close(maps[:, :3, :3] @ across, across.expand(MANY, 3))


def test_hue_turns_about_the_grey_axis() -> None:
    maps = draws("hue")[:, :3, :3]
    grey, across = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, -1, 0], dtype=torch.float64)
    torch.testing.assert_close(maps @ grey, grey.expand(MANY, 3))
    torch.testing.assert_close(maps @ maps.mT, unit(3).expand(MANY, 3, 3))
    torch.testing.assert_close(torch.linalg.det(maps), torch.ones(MANY, dtype=torch.float64))
    other = torch.tensor([1.0, 1, -2], dtype=torch.float64) / 3**0.5  # at right angles to both, as long
    angle = torch.atan2(maps @ across @ other, maps @ across @ across)
    check_uniform(angle, math.pi)


def test_saturation_scales_the_distance_from_grey() -> None:
    maps = draws("saturation")[:, :3, :3]
    grey, across = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, -1, 0], dtype=torch.float64)
    torch.testing.assert_close(maps @ grey, grey.expand(MANY, 3))
    factor = (maps @ across)[:, 0]
    torch.testing.assert_close(maps @ across, factor[:, None] * across)
    check_normal(factor.log2(), 1.0)


@pytest.mark.parametrize(
    "name", sorted(set(TRANSFORMS) - {"flip", "rotate_90", "translate_whole", "luma_flip"})
)
def test_each_comes_with_probability_p(name: str) -> None:
    maps = draws(name, 0.3)
    changed = (maps != unit(maps.shape[-1])).flatten(1).any(1).double().mean().item()
    assert changed == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", ["rotate_90", "translate_whole", "luma_flip"])
def test_a_choice_may_be_none(name: str) -> None:
    """Quarter turns: 3 of 4 do something; luma flips: 1 of 2; shifts of 16 px: all but 1 of 16."""
    share = {"rotate_90": 3 / 4, "luma_flip": 1 / 2, "translate_whole": 15 / 16}[name]
    maps = draws(name, 0.4)
    changed = (maps != unit(maps.shape[-1])).flatten(1).any(1).double().mean().item()
    assert changed == pytest.approx(0.4 * share, abs=0.03)


def test_the_order_is_that_of_the_paper() -> None:
    """Blits come before geometry: the shift of an image that is then doubled counts twice."""
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 12] = 1
    shift, double = torch.eye(3), torch.diag(torch.tensor([0.5, 0.5, 1]))
    shift[0, 2] = -3  # what ends up at x comes from x - 3
    moved = resample(image, (shift @ double)[None])
    assert moved.flatten().argmax().item() == 16 * 33 + 16 + 2 * (12 - 16 + 3)


# -------------------------------------------------------------------------------------------------- exactness


def pictures(number: int = 4, channels: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(number, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("p", [0.0, torch.tensor(0.0)])
def test_p_0_is_the_identity_bit_for_bit(p: float | Tensor) -> None:
    images = pictures()
    images[0, 0, 0, 0] = -0.0
    assert torch.equal(augment_adaptively(images, p).view(torch.int32), images.view(torch.int32))


def test_images_that_are_not_hit_keep_their_bits() -> None:
    """At p = 1 / 40 of twelve transforms many of 200 images are hit, and the others go the same way."""
    torch.manual_seed(0)
    images = pictures(200)
    same = (augment_adaptively(images, 1 / 40) == images).flatten(1)
    assert 30 < (~same.all(1)).sum() < 80
    assert same.all(1).sum() > 100


def test_p_1_changes_every_image_and_each_in_its_own_way() -> None:
    torch.manual_seed(0)
    images = pictures(1).expand(20, -1, -1, -1)
    changed = augment_adaptively(images, 1.0)
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    assert (changed - images).abs().flatten(1).mean(1).min() > 0.05
    assert torch.cdist(changed.flatten(1), changed.flatten(1)).add(torch.eye(20)).min() > 0.5


def test_flips_and_turns_are_exact() -> None:
    torch.manual_seed(0)
    images = pictures(40)
    flipped = augment_adaptively(images, 1.0, ["flip"])
    expected = [
        (torch.equal(got, image), torch.equal(got, image.flip(-1)))
        for got, image in zip(flipped, images, strict=True)
    ]
    assert all(sum(both) == 1 for both in expected)
    assert 10 < sum(same for same, _ in expected) < 30
    turned = augment_adaptively(images, 1.0, ["rotate_90"])
    kinds = [
        [torch.equal(got, image.rot90(k, (1, 2))) for k in range(4)]
        for got, image in zip(turned, images, strict=True)
    ]
    assert all(sum(kind) == 1 for kind in kinds)
    assert all(any(kind[k] for kind in kinds) for k in range(4))


def test_whole_translations_are_exact_and_reflect() -> None:
    images = pictures(1, size=(8, 12))
    shift = torch.eye(3)
    shift[0, 2], shift[1, 2] = -3, 2  # to the right by 3, up by 2
    moved = blit(images, shift[None])
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    assert torch.equal(moved, padded[:, :, 4 + 2 : 4 + 2 + 8, 4 - 3 : 4 - 3 + 12])


def test_the_filter_is_orthogonal_and_has_six_vanishing_moments() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    for shift in range(6):
        product = (taps[: 12 - 2 * shift] * taps[2 * shift :]).sum().item()
        assert product == pytest.approx(float(shift == 0), abs=1e-11)
    alternating = taps * (-1.0) ** torch.arange(12)
    for power in range(6):
        moment = (alternating * torch.arange(12, dtype=torch.float64) ** power).sum().item()
        assert moment == pytest.approx(0, abs=1e-8)


def test_resampling_by_nothing_returns_the_image() -> None:
    images = pictures(size=(24, 32)).double()
    same = resample(images, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(same[inside], images[inside], atol=1e-10, rtol=0)


def waves(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(0.5 * x + 0.3 * y) + torch.cos(0.4 * y - 0.2 * x)


def test_resampling_turns_and_scales_about_the_middle() -> None:
    """Against the same waves, drawn turned: no shift of half a pixel anywhere."""
    height, width = 32, 40
    rows, columns = torch.arange(height).double() - 15.5, torch.arange(width).double() - 19.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    cos, sin = math.cos(0.4) / 1.2, math.sin(0.4) / 1.2
    source = torch.tensor([[cos, sin, 0.3], [-sin, cos, -0.7], [0, 0, 1]], dtype=torch.float64)
    from_x, from_y = cos * x + sin * y + 0.3, -sin * x + cos * y - 0.7
    moved = resample(waves(x, y)[None, None], source[None])[0, 0]
    inside = (from_x.abs() < 16) & (from_y.abs() < 12)
    assert inside.sum() > 700
    assert (moved - waves(from_x, from_y))[inside].abs().max() < 0.02
    # The reference is off by far more where it is shifted by half a pixel.
    assert (moved - waves(from_x + 0.5, from_y))[inside].abs().max() > 0.2


def test_shrinking_does_not_alias() -> None:
    """A checkerboard, halved without a filter, would be all black or all white."""
    rows = torch.arange(32)
    board = ((rows[:, None] + rows) % 2 * 2 - 1).float()[None, None]
    source = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None]
    assert resample(board, source)[..., 10:22, 10:22].abs().max() < 0.35


def test_grey_images_change_as_grey_pictures_do() -> None:
    grey = pictures(30, 1)
    torch.manual_seed(0)
    expected = augment_adaptively(grey.expand(-1, 3, -1, -1), 1.0).mean(1, keepdim=True)
    torch.manual_seed(0)
    torch.testing.assert_close(augment_adaptively(grey, 1.0), expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------ differentiability


@pytest.mark.parametrize("names", [BLITS, GEOMETRY, COLOUR, TRANSFORMS])
def test_gradients_by_finite_differences(names: tuple[str, ...]) -> None:
    images = pictures(2, size=(7, 8)).double().requires_grad_()

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(4)
        return augment_adaptively(x, 1.0, names)

    assert torch.autograd.gradcheck(function, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x).square(), (images,), fast_mode=True)


def test_r1_passes_through() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.LazyLinear(1)
    )
    r1_penalty(lambda x: net(augment_adaptively(x, 1.0)), pictures()).backward()  # type: ignore[no-untyped-call]
    assert net[0].weight.grad is not None
    assert net[0].weight.grad.abs().max() > 0


def test_half_precision_is_lifted() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert augment_adaptively(pictures().to(torch.bfloat16), 0.8).dtype == torch.float32


def test_any_number_of_channels_is_moved_as_one() -> None:
    images, moves = pictures(channels=3), BLITS + GEOMETRY
    torch.manual_seed(0)
    moved = augment_adaptively(images, 1.0, moves)
    torch.manual_seed(0)
    both = augment_adaptively(torch.cat([images, images[:, :2]], 1), 1.0, moves)
    torch.testing.assert_close(both, torch.cat([moved, moved[:, :2]], 1))


def test_colours_of_other_channels_are_refused_by_their_key() -> None:
    with pytest.raises(UserError, match=r"^data\.channels=4: hue, saturation of method\.adaptive") as raised:
        AdaptiveAugmentation(names=["hue", "flip", "saturation", "scale"]).check_channels(4, "data.channels")
    assert str(raised.value).endswith("give method.adaptive.names=[flip,scale]")
    for channels in (1, 3):
        AdaptiveAugmentation().check_channels(channels, "data.channels")


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 7 px a side, these are \(1, 3, 6, 8\)"):
        augment_adaptively(torch.zeros(1, 3, 6, 8), 1.0)
    with pytest.raises(ValueError, match=r"1 or 3, H, W\), these are \(1, 2, 8, 8\): leave out hue"):
        augment_adaptively(torch.zeros(1, 2, 8, 8), 1.0, ["flip", "hue"])
    with pytest.raises(UserError, match=r"method\.adaptive: no transform cutout; there is flip"):
        check_transforms(["cutout"], "method.adaptive")
    with pytest.raises(UserError, match="no transform blur"):
        AdaptiveAugmentation(names=["blur"])


# ------------------------------------------------------------------------------------------------- controller


def test_p_rises_and_falls_at_the_stated_rate() -> None:
    strength = AdaptiveStrength(target=0.6, interval=4, speed_kimg=1.0)
    sure, unsure = torch.ones(10, 1), torch.tensor([[1.0], [-1.0]]).repeat(5, 1)
    for batch in range(1, 51):
        strength.observe(sure)
        # 4 batches of 10 images of the 1000 from 0 to 1.
        assert strength.p.item() == pytest.approx(batch // 4 * 0.04, abs=1e-6)
    assert strength.overfitting.item() == 1
    for _ in range(2):
        strength.observe(unsure)
    # The two of each kind on either side of the border give r = 0.5, below the target.
    assert strength.overfitting.item() == pytest.approx(0.5)
    assert strength.p.item() == pytest.approx(0.44, abs=1e-6)
    for _ in range(4):
        strength.observe(unsure)
    assert strength.overfitting.item() == 0
    assert strength.p.item() == pytest.approx(0.40, abs=1e-6)


def test_batches_of_one_step_count_as_one() -> None:
    logits = torch.linspace(-0.2, 1, 12)
    whole, parts = (AdaptiveStrength(interval=2, speed_kimg=0.1) for _ in range(2))
    for step in range(1, 6):
        before = parts.p.item()
        parts.observe(logits[:5], completes=False)
        parts.observe(logits[5:9], completes=False)
        assert parts.p.item() == before
        whole.observe(logits)
        parts.observe(logits[9:])
        assert parts.p.item() == pytest.approx(step // 2 * 0.24)
        for (name, one), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
            assert torch.equal(one, other), name


def test_p_stays_a_probability() -> None:
    strength = AdaptiveStrength(interval=1, speed_kimg=0.01)
    for _ in range(3):
        strength.observe(-torch.ones(4))
    assert strength.p.item() == 0
    for _ in range(5):
        strength.observe(torch.ones(4))
    assert strength.p.item() == 1


def test_only_signs_count_and_each_patch_of_a_logit_map() -> None:
    strength = AdaptiveStrength(interval=1)
    strength.observe(torch.tensor([[[[9.0, -0.1]]], [[[3.0, 1e-3]]]], dtype=torch.bfloat16))
    assert strength.overfitting.item() == pytest.approx(0.5)


def test_state_is_resumed_in_the_middle_of_an_interval() -> None:
    one = AdaptiveAugmentation(interval=4, speed_kimg=0.5)
    for _ in range(6):
        one.observe(torch.ones(5))
    other = AdaptiveAugmentation(interval=4, speed_kimg=0.5)
    other.load_state_dict(one.state_dict())
    for module in (one, other):
        module.observe(torch.ones(5))
        module.observe(torch.ones(5))
    assert one.strength.p.item() == other.strength.p.item() == pytest.approx(2 * 20 / 500)
    assert list(one.parameters()) == []


def test_the_module_augments_at_its_strength() -> None:
    images = pictures()
    assert torch.equal(AdaptiveAugmentation()(images), images)
    torch.manual_seed(0)
    changed = AdaptiveAugmentation(initial=1.0)(images)
    torch.manual_seed(0)
    assert torch.equal(changed, augment_adaptively(images, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 1.0}, "target=1.0"),
        ({"interval": 0}, "interval=0: give at least 1"),
        ({"speed_kimg": 0}, "speed_kimg=0"),
        ({"speed_kimg": float("nan")}, "speed_kimg=nan"),
        ({"initial": 1.5}, "initial=1.5"),
    ],
)
def test_slips_of_the_controller(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdaptiveStrength(**arguments)  # type: ignore[arg-type]
