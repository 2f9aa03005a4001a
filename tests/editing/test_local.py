"""Edits in a mask: what moves, what stays, what is kept, and one line for each slip."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from i2i_lightning.editing.local import (
    Edited,
    Effort,
    _shifted,
    attribute_transfer,
    check_image,
    check_mask,
    crossover,
    inpaint,
    local_edit,
    local_style_transfer,
    soften,
)
from i2i_lightning.editing.transfer import embed_difference
from i2i_lightning.losses.backbones import IMAGE2STYLEGANPP_LAYERS
from i2i_lightning.losses.features import perceptual
from i2i_lightning.methods.inversion import InversionLoss
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling.edits.latents import ExpressionTransfer
from i2i_lightning.sampling.edits.regions import LocalEdit
from i2i_lightning.types import UserError

SIZE = 16
EFFORT = Effort(latent_steps=40, latent_rate=0.1, noise_steps=60, noise_rate=0.2, blur_px=0.5)
REACH = 2  # pixels that a deviation of 0.5 px softens beyond a mask
TOLERANCE = 0.06
"""Root mean square outside of a mask, in [-1, 1], that noise maps reach in so few steps."""


def tiny(channels: int = 1, label_dim: int = 0) -> StyleGAN2Generator:
    torch.manual_seed(0)
    made = StyleGAN2Generator(
        SIZE, channels, 8, 8, label_dim, mapping_layers=2, channel_base=128, channel_max=8
    )
    for layer in made.synthesis.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def generator() -> StyleGAN2Generator:
    return tiny()


@pytest.fixture(scope="module")
def latents(generator: StyleGAN2Generator) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return generator.mapping(torch.randn(3, 8, generator=rng)).contiguous()


@pytest.fixture(scope="module")
def images(generator: StyleGAN2Generator, latents: Tensor) -> Tensor:
    """Pictures with something in them that no latent draws."""
    rng = torch.Generator().manual_seed(2)
    drawn: Tensor = generator.synthesis(latents)
    return (drawn + 0.1 * torch.randn(drawn.shape, generator=rng)).clamp(-1, 1)


def box(left: int = 4, top: int = 4, right: int = 10, bottom: int = 10) -> Tensor:
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[:, :, top:bottom, left:right] = 1
    return mask


def rms(difference: Tensor, where: Tensor) -> float:
    return float(((difference.square() * where).sum() / where.sum()).sqrt())


PIXELS = InversionLoss(None)
OUTSIDE = 1 - box(4 - REACH, 4 - REACH, 10 + REACH, 10 + REACH)
CORE = box(4 + REACH, 4 + REACH, 10 - REACH, 10 - REACH)


def style_loss_of(width: tuple[str, ...] = IMAGE2STYLEGANPP_LAYERS) -> InversionLoss:
    return InversionLoss(perceptual("substitute", layers=width))


def test_crossover_takes_each_picture_where_it_is_wanted(
    generator: StyleGAN2Generator, images: Tensor
) -> None:
    inside, around = images[:1], images[1:2]
    made = crossover(generator, inside, around, box(), PIXELS, EFFORT)
    assert rms(made.image - around, OUTSIDE) < TOLERANCE < rms(inside - around, OUTSIDE)
    assert rms(made.image - inside, CORE) < TOLERANCE < rms(inside - around, CORE)
    # The noise has brought it there: what the latent alone gives is kept as a step.
    assert rms(made.steps["latent"] - around, OUTSIDE) > TOLERANCE
    soft = made.steps["mask"]
    torch.testing.assert_close(made.steps["joined"], soft * inside + (1 - soft) * around)
    assert list(made.steps) == ["inside", "around", "mask", "joined", "latent"]
    assert made.noise is not None
    assert torch.equal(made.image, generator.synthesis(made.w_plus, made.noise))


def test_inpainting_restores_what_is_seen_and_keeps_the_filling(
    generator: StyleGAN2Generator, images: Tensor
) -> None:
    spoilt = images[:1].clone()
    spoilt[box() > 0] = torch.nan  # it does not matter what a hole shows
    made = inpaint(generator, spoilt, box(), PIXELS, EFFORT)
    seen = 1 - box()
    assert rms(made.image - images[:1], seen) < TOLERANCE < rms(made.steps["latent"] - images[:1], seen)
    assert rms(made.image - made.steps["latent"], box()) < TOLERANCE
    assert torch.equal(made.steps["image"], torch.where(box() > 0, torch.zeros(()), images[:1]))
    assert torch.equal(made.steps["hole"], box())
    other = images[:1] * seen + 0.7 * box()
    assert torch.equal(inpaint(generator, other, box(), PIXELS, EFFORT).image, made.image)


def test_rows_that_may_not_move_do_not(generator: StyleGAN2Generator, images: Tensor) -> None:
    effort = Effort(latent_steps=5, noise_steps=0)
    start = torch.from_numpy(_mean(generator)).to(images)

    def moved(made: Edited) -> list[int]:
        return [row for row in range(6) if not torch.equal(made.w_plus[0, row], start)]

    assert moved(inpaint(generator, images[:1], box(), PIXELS, effort)) == [0, 1, 2, 4, 5]
    assert moved(inpaint(generator, images[:1], box(), PIXELS, effort, rows=[1, 3])) == [1, 3]
    photo = start.expand(1, 6, -1)
    made = local_edit(generator, images[:1], images[1:2], box(), photo, PIXELS, effort)
    assert moved(made) == [0, 1, 2]
    assert made.noise is None  # no stage moved it


def _mean(generator: StyleGAN2Generator) -> Any:
    """Return where an embedding begins."""
    from i2i_lightning.methods.inversion import statistics

    return statistics(generator).mean[0].numpy()


def test_scribbles_change_the_mask_and_nothing_else(
    generator: StyleGAN2Generator, images: Tensor, latents: Tensor
) -> None:
    scribbled = torch.where(box() > 0, torch.full_like(images[:1], 0.9), images[:1])
    made = local_edit(generator, images[:1], scribbled, box(), latents[:1], PIXELS, EFFORT)
    assert rms(made.image - images[:1], OUTSIDE) < TOLERANCE
    before, after = (rms(image - scribbled, CORE) for image in (images[:1], made.image))
    assert after < 0.9 * before
    assert rms(made.image - made.steps["latent"], CORE) < TOLERANCE
    held = local_edit(
        generator, images[:1], scribbled, box(), latents[:1], PIXELS, Effort(40, 0.1, 0), anchor=100.0
    )
    free = local_edit(
        generator, images[:1], scribbled, box(), latents[:1], PIXELS, Effort(40, 0.1, 0), anchor=0.0
    )
    far, near = ((each.w_plus - latents[:1]).norm() for each in (free, held))
    assert near < 0.5 * far


def test_scribbles_keep_the_noise_of_the_photo(
    generator: StyleGAN2Generator, images: Tensor, latents: Tensor
) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, 1, *shape, generator=rng) for shape in generator.noise_shapes]
    photo = generator.synthesis(latents[:1], noise)
    scribbled = torch.where(box() > 0, torch.full_like(photo, 0.9), photo)
    effort = Effort(latent_steps=1, latent_rate=1e-9, noise_steps=0)
    with_it, without = (
        local_edit(generator, photo, scribbled, box(), latents[:1], PIXELS, effort, noise=given)
        for given in (noise, None)
    )
    assert rms(with_it.image - photo, OUTSIDE) < 1e-3 < rms(without.image - photo, OUTSIDE)
    assert with_it.noise is not None
    assert all(torch.equal(mine, given) for mine, given in zip(with_it.noise, noise, strict=True))


def test_what_is_half_seen_is_wanted_as_it_is(generator: StyleGAN2Generator, images: Tensor) -> None:
    seen = torch.ones(1, 1, SIZE, SIZE)
    seen[..., :4], seen[..., 4:6] = 0, 0.5
    unseen = images[:1].clone()
    unseen[..., :4] = torch.nan
    wanted = check_image(unseen, generator, seen=seen)
    assert torch.equal(wanted[..., 4:], images[:1, ..., 4:])
    assert bool((wanted[..., :4] == 0).all())


def test_style_changes_in_the_mask_alone(images: Tensor, generator: StyleGAN2Generator) -> None:
    effort = Effort(latent_steps=20, latent_rate=0.1, noise_steps=120, noise_rate=0.2, blur_px=0.5)
    loss = style_loss_of()
    content, style = images[:1], images[2:]

    def transfer(weight: float) -> Edited:
        return local_style_transfer(generator, content, style, box(), loss, effort, weight)

    made = transfer(1e4)
    assert rms(made.image - content, OUTSIDE) < TOLERANCE
    # The same search that hardly weighs the style ends elsewhere, further from it.
    assert loss.perceptual is not None
    soft = made.steps["mask"]
    wanted = _gram(loss, style, soft)
    near, far = (
        float((_gram(loss, each.steps["latent"], soft) - wanted).norm()) for each in (made, transfer(1e-6))
    )
    assert near < 0.9 * far
    assert list(made.steps) == ["content", "style", "mask", "latent"]
    assert any("substitute" in note for note in made.notes)


def _gram(loss: InversionLoss, image: Tensor, mask: Tensor) -> Tensor:
    from i2i_lightning.losses.features import gram_matrix

    assert loss.perceptual is not None
    return gram_matrix(loss.perceptual.features(image)["conv3_3"], mask)


def test_a_box_as_large_as_the_image_goes_on_from_the_donor(
    generator: StyleGAN2Generator, latents: Tensor
) -> None:
    face, donor = latents[:1], latents[1:2]
    whole = (0, 0, SIZE, SIZE)
    given = generator.activations(donor, ["b8.conv1"])["b8.conv1"]
    wanted = generator.synthesis(face, "const", {"b8.conv1": lambda _: given})
    made = attribute_transfer(generator, face, donor, whole, "b8.conv1")
    torch.testing.assert_close(made.image, wanted, atol=1e-6, rtol=0)
    assert not torch.allclose(made.image, generator.synthesis(face), atol=0.01)
    last = attribute_transfer(generator, face, donor, whole, generator.layer_names[-1])
    torch.testing.assert_close(last.image, generator.synthesis(donor), atol=1e-6, rtol=0)
    assert torch.equal(made.steps["donor"], generator.synthesis(donor))
    assert torch.equal(made.steps["face"], generator.synthesis(face))


def test_a_part_changes_nothing_far_from_its_box(generator: StyleGAN2Generator, latents: Tensor) -> None:
    rng = torch.Generator().manual_seed(3)
    noise, other = (
        [torch.randn(1, 1, *shape, generator=rng) for shape in generator.noise_shapes] for _ in range(2)
    )
    made = attribute_transfer(
        generator, latents[:1], latents[1:2], (2, 2, 6, 6), "b16.conv0", noise, other, blur_px=0.5
    )
    changed = (made.image != generator.synthesis(latents[:1], noise)).nonzero()[:, 2:]
    # A 3 x 3 convolution follows, which reaches a pixel further than the softened box.
    assert changed.min() >= 2 - REACH - 1
    assert changed.max() <= 5 + REACH + 1
    assert len(changed) >= 16
    assert made.noise is not None
    assert all(map(torch.equal, made.noise, noise))


def test_a_part_can_go_elsewhere(generator: StyleGAN2Generator, latents: Tensor) -> None:
    face, donor, last = latents[:1], latents[1:2], generator.layer_names[-1]
    made = attribute_transfer(generator, face, donor, (1, 2, 5, 6), last, blur_px=0, to=(10, 9))
    giving = generator.synthesis(donor)
    torch.testing.assert_close(made.image[..., 9:13, 10:14], giving[..., 2:6, 1:5])
    elsewhere = (1 - box(10, 9, 14, 13)).bool()
    assert torch.equal(made.image[elsewhere], generator.synthesis(face)[elsewhere])
    # In a corner, too: nothing wraps around to the other side, however soft the border is.
    corner = attribute_transfer(generator, face, donor, (0, 0, 4, 4), last, blur_px=1, to=(12, 12))
    soft = corner.steps["mask"]
    padded = torch.nn.functional.pad(giving, (12, 0, 12, 0), mode="replicate")[..., :SIZE, :SIZE]
    torch.testing.assert_close(corner.image, soft * padded + (1 - soft) * generator.synthesis(face))


@pytest.mark.parametrize("to", [(1, 6), (3, 2), (9, 11)])
def test_a_part_moves_by_parts_of_cells(
    generator: StyleGAN2Generator, latents: Tensor, to: tuple[int, int]
) -> None:
    """In a layer at 4 px of 16, a pixel is a quarter of a cell."""
    face, donor, layer = latents[:1], latents[1:2], "b4.conv1"
    made = attribute_transfer(generator, face, donor, (1, 2, 5, 6), layer, blur_px=0, to=to)
    given = generator.activations(donor, [layer])[layer]
    places = [torch.arange(4) - shift / 4 for shift in (to[1] - 2, to[0] - 1)]  # of rows and of columns
    down, right = torch.meshgrid(*((2 * place.clamp(0, 3) + 1) / 4 - 1 for place in places), indexing="ij")
    at = torch.stack([right, down], -1)[None].to(given)
    moved = torch.nn.functional.grid_sample(given, at, padding_mode="border", align_corners=False)
    soft = torch.nn.functional.avg_pool2d(made.steps["mask"], 4)
    wanted = generator.synthesis(face, "const", {layer: lambda there: soft * moved + (1 - soft) * there})
    torch.testing.assert_close(made.image, wanted, atol=1e-5, rtol=0)


def test_whole_cells_are_copied_and_not_computed() -> None:
    cells = torch.randn(1, 2, 5, 6)
    for by in (-2, 0, 3):
        wanted = cells[..., (torch.arange(6) - by).clamp(0, 5)]
        assert torch.equal(_shifted(cells, -1, float(by)), wanted)


def test_what_is_said_nowhere_is_as_in_the_command(checkout: Path) -> None:
    conf = OmegaConf.load(checkout / "conf/edit.yaml")
    assert vars(Effort()) == {key: value for key, value in conf.effort.items() if key != "_target_"}
    for name, function, operation in (
        ("local_edit", local_edit, LocalEdit),
        ("expression_transfer", embed_difference, ExpressionTransfer),
    ):
        anchor = OmegaConf.load(checkout / f"conf/operation/{name}.yaml").anchor
        assert inspect.signature(function).parameters["anchor"].default == operation.anchor == anchor


def test_soft_masks_keep_their_range_and_their_mass() -> None:
    soft = soften(box(), Effort(blur_px=1.0))
    assert 0 <= float(soft.min()) <= float(soft.max()) <= 1
    assert float(soft.sum()) == pytest.approx(float(box().sum()), rel=1e-4)
    assert not soft[..., :1, :].any()  # three deviations away
    ones = torch.ones(1, 1, SIZE, SIZE)
    torch.testing.assert_close(soften(ones, Effort(blur_px=3.0)), ones)
    assert torch.equal(soften(box(), Effort(blur_px=0)), box())


def test_labels_reach_the_embedding(images: Tensor) -> None:
    classes, effort = tiny(label_dim=2), Effort(latent_steps=2, noise_steps=1)
    one, other = (
        crossover(classes, images[:1], images[1:2], box(), PIXELS, effort, label=label)
        for label in torch.eye(2)[:, None]
    )
    assert not torch.equal(one.w_plus, other.w_plus)  # each begins at the mean latent of its class
    with pytest.raises(UserError, match="takes one of length 2"):
        inpaint(classes, images[:1], box(), PIXELS, effort)


def test_generators_without_noise_keep_the_latents_render(
    generator: StyleGAN2Generator, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = inpaint(generator, images[:1], box(), PIXELS, Effort(latent_steps=3, noise_steps=0))
    assert made.noise is None
    assert torch.equal(made.image, made.steps["latent"])


ONE = torch.zeros(1, 1, SIZE, SIZE)
Ways = dict[str, Callable[[StyleGAN2Generator, Tensor], Any]]
SLIPS: Ways = {
    r"^mask: \(1, 1, 8, 8\); this generator's images take a mask of \(1, 1, 16, 16\)$": lambda g, w: (
        crossover(g, ONE, ONE, torch.ones(1, 1, 8, 8), PIXELS)
    ),
    r"^mask: is empty; nothing would be edited$": lambda g, w: local_edit(g, ONE, ONE, ONE, w, PIXELS),
    r"^hole: is empty": lambda g, w: inpaint(g, ONE, ONE, PIXELS),
    r"^hole: covers the whole image; leave something to go by$": lambda g, w: inpaint(
        g, ONE, torch.ones_like(ONE), PIXELS
    ),
    r"^mask: covers the whole image; leave something": lambda g, w: local_style_transfer(
        g, ONE, ONE, torch.ones_like(ONE), style_loss_of(("conv3_3",))
    ),
    r"^mask: has values outside of 0 to 1$": lambda g, w: check_mask(ONE - 1, g),
    r"^hole: has values outside of 0 to 1$": lambda g, w: check_mask(ONE * torch.nan, g, "hole"),
    r"^image: holds NaN or infinity$": lambda g, w: inpaint(g, ONE + torch.nan, box(), PIXELS),
    r"^around: holds NaN or infinity$": lambda g, w: crossover(g, ONE, ONE / 0, box(), PIXELS),
    r"^inside: \(1, 3, 16, 16\); this generator draws images of \(1, 1, 16, 16\)$": lambda g, w: crossover(
        g, ONE.expand(-1, 3, -1, -1), ONE, box(), PIXELS
    ),
    r"^scribbled: \(1, 1, 16, 12\)": lambda g, w: local_edit(g, ONE, ONE[..., :12], box(), w, PIXELS),
    r"^rows|rows=\[6\]": lambda g, w: inpaint(g, ONE, box(), PIXELS, rows=[6]),
    r"^box=\[10, 4, 10, 8\]: left, top, right, bottom within 0 to 16": lambda g, w: attribute_transfer(
        g, w, w, (10, 4, 10, 8), "b8.conv1"
    ),
    r"^box=\[-1, 0, 4, 17\]": lambda g, w: attribute_transfer(g, w, w, (-1, 0, 4, 17), "b8.conv1"),
    r"^to=\[14, 0\]: the box would leave the image": lambda g, w: attribute_transfer(
        g, w, w, (0, 0, 4, 4), "b8.conv1", to=(14, 0)
    ),
    r"^layer b64.conv1: this generator has b4.conv1, b4.image, b8.conv0": lambda g, w: attribute_transfer(
        g, w, w, (0, 0, 4, 4), "b64.conv1"
    ),
    r"^weight=0: give a positive": lambda g, w: local_style_transfer(
        g, ONE, ONE, box(), style_loss_of(("conv3_3",)), weight=0
    ),
    r"^loss.perceptual=null: style is compared": lambda g, w: local_style_transfer(
        g, ONE, ONE, box(), PIXELS
    ),
    r"^loss.perceptual.layers: style is compared in conv3_3": lambda g, w: local_style_transfer(
        g, ONE, ONE, box(), style_loss_of(("conv1_1",))
    ),
    r"^latent_steps=0: give at least 1$": lambda g, w: Effort(latent_steps=0),
    r"^noise_rate=0: give a positive rate$": lambda g, w: Effort(noise_rate=0),
    r"^blur_px=-1: give 0 or more$": lambda g, w: Effort(blur_px=-1),
}


@pytest.mark.parametrize("says", SLIPS)
def test_a_slip_is_told_in_one_line(says: str, generator: StyleGAN2Generator, latents: Tensor) -> None:
    with pytest.raises(UserError, match=says) as slip:
        SLIPS[says](generator, latents[:1])
    assert "\n" not in str(slip.value)
