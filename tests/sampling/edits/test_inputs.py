"""Masks as people save them, grey or painted on a transparent layer; and latents in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling.edits.inputs import Picture, Reader, latent_files
from i2i_lightning.types import UserError

SIZE = 16
INSIDE = np.zeros((SIZE, SIZE), np.uint8)
INSIDE[3:9, 5:12] = 255


def mask_of(file: Path) -> Tensor:
    generator = StyleGAN2Generator(SIZE, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    photo = Picture(torch.zeros(1, 3, SIZE, SIZE), (SIZE, SIZE), "photo")
    return Reader(generator).mask("operation.hole", str(file), photo)


def painted(colour: int, alpha: np.ndarray = INSIDE) -> Image.Image:
    """Return one colour behind an alpha, RGBA."""
    colours = np.full((SIZE, SIZE, 3), colour, np.uint8)
    return Image.fromarray(np.concatenate([colours, alpha[:, :, None]], 2))


@pytest.mark.parametrize("colour", [255, 0, 90])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_opaque_is_the_mask(tmp_path: Path, colour: int, mode: str) -> None:
    painted(colour).convert(mode).save(tmp_path / "mask.png")
    assert torch.equal(mask_of(tmp_path / "mask.png")[0, 0], torch.from_numpy(INSIDE / 255).float())


def test_a_palette_with_a_transparent_colour_and_half_transparent_paint(tmp_path: Path) -> None:
    Image.fromarray((INSIDE > 0).astype(np.uint8)).convert("P").save(tmp_path / "mask.png", transparency=0)
    assert torch.equal(mask_of(tmp_path / "mask.png")[0, 0], torch.from_numpy(INSIDE / 255).float())
    painted(255, INSIDE // 5).save(tmp_path / "mask.png")
    assert mask_of(tmp_path / "mask.png").unique().tolist() == pytest.approx([0, 0.2])


@pytest.mark.parametrize("alpha", [255, 120])
def test_an_alpha_that_is_the_same_everywhere_says_nothing(tmp_path: Path, alpha: int) -> None:
    image = Image.fromarray(INSIDE).convert("RGBA")
    image.putalpha(alpha)
    image.save(tmp_path / "mask.png")
    assert torch.equal(mask_of(tmp_path / "mask.png")[0, 0], torch.from_numpy(INSIDE / 255).float())
    painted(0, np.full_like(INSIDE, alpha)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"operation.hole=.*mask.png: is empty \(all black\)"):
        mask_of(tmp_path / "mask.png")


def test_a_turned_alpha_lies_as_the_picture_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a right angle
    painted(255).save(tmp_path / "mask.webp", lossless=True, exact=True, exif=exif)
    turned = torch.from_numpy(np.rot90(INSIDE, -1) / 255).float()
    assert torch.equal(mask_of(tmp_path / "mask.webp")[0, 0], turned)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("latents", ["a", "sub/a", "sub/b", "sub/deeper/c", "z"]),
        (".", ["sub/a", "sub/b", "sub/deeper/c"]),
        (".", ["a", "z"]),
    ],
)
def test_latents_in_subfolders_are_taken_in_the_order_of_their_paths(
    tmp_path: Path, folder: str, names: list[str]
) -> None:
    if names == ["a", "z"]:  # beside files of its own a folder may hold others, which are no latents
        (tmp_path / "run" / "sub").mkdir(parents=True)
        (tmp_path / "run" / "sub" / "generator.safetensors").touch()
    for name in reversed(names):
        path = tmp_path / "run" / folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path / "run" / folder) for path in latent_files(str(tmp_path / "run"))]
    assert [path.with_suffix("").as_posix() for path in found] == names
