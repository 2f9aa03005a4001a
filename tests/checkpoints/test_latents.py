"""Latent files: whole round trips, the picture bit for bit, and one line for each slip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from i2i_lightning.checkpoints.latents import Latent, load_latent, save_latent
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError


@pytest.fixture
def generator() -> StyleGAN2Generator:
    torch.manual_seed(0)
    made = StyleGAN2Generator(16, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    for layer in made.synthesis.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.3)
    return made


def latent_of(generator: StyleGAN2Generator) -> Latent:
    torch.manual_seed(1)
    return Latent(
        w_plus=generator.mapping(torch.randn(1, 8))[0].detach().contiguous(),
        fingerprint=generator.fingerprint(),
        name="a face.png",
        noise=[torch.randn(1, 1, *shape) for shape in generator.noise_shapes],
        generator="embedded",
        settings={"preset": "fast", "steps": [1, 2]},
        metrics={"psnr": 21.5},
    )


def test_file_gives_the_picture_back_bit_for_bit(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    latent = latent_of(generator)
    save_latent(tmp_path / "a.safetensors", latent)
    back = load_latent(tmp_path / "a.safetensors")
    assert torch.equal(back.render(generator), latent.render(generator))
    assert (back.name, back.generator, back.settings, back.metrics) == (
        latent.name,
        "embedded",
        latent.settings,
        latent.metrics,
    )
    stored = Latent(latent.w_plus, latent.fingerprint)
    assert not torch.equal(stored.render(generator), latent.render(generator))
    assert torch.equal(stored.render(generator), generator.synthesis(latent.w_plus[None]))


def test_tuned_weights_replace_the_generators(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    latent = latent_of(generator)
    before = latent.render(generator)
    latent.tuned = {"synthesis.b16.torgb.bias": torch.full((3,), 0.5)}
    save_latent(tmp_path / "a.safetensors", latent)
    tuned = load_latent(tmp_path / "a.safetensors").render(generator)
    torch.testing.assert_close(tuned, before + 0.5)
    assert torch.equal(
        Latent(latent.w_plus, latent.fingerprint, noise=latent.noise).render(generator), before
    )


def test_another_generators_latent_is_refused(generator: StyleGAN2Generator) -> None:
    latent = latent_of(generator)
    other = StyleGAN2Generator(16, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    with pytest.raises(UserError, match=r"a face.png: belongs to another generator .*embedded"):
        latent.render(other)
    smaller = StyleGAN2Generator(8, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    with pytest.raises(UserError, match=r"shape \(6, 8\), this generator takes \(4, 8\)"):
        latent.render(smaller)
    assert latent.noise is not None
    latent.noise.pop()
    with pytest.raises(UserError, match="its noise maps are"):
        latent.render(generator)


def test_slips(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    latent = latent_of(generator)
    path = tmp_path / "a.safetensors"
    latent.w_plus[0, 0] = torch.nan
    with pytest.raises(UserError, match="w_plus holds numbers that are not finite"):
        save_latent(path, latent)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no such latent file"):
        load_latent(path)
    save_file({"w_plus": latent.w_plus}, path)
    with pytest.raises(UserError, match="not a latent file of i2i_lightning"):
        load_latent(path)
    latent.w_plus[0, 0] = 0
    save_latent(path, latent)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_latent(path)
    # What a later tool may have written: numbers that are not finite, in a file that is whole.
    place = len(content) - 4
    path.write_bytes(content[:place] + b"\x00\x00\xc0\x7f")
    with pytest.raises(UserError, match="not finite"):
        load_latent(path)
