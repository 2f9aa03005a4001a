"""Latent files: whole round trips, the picture bit for bit, and one line for each slip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
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


def rewritten(path: Path, **tensors: torch.Tensor | None) -> None:
    """Change tensors of a latent file, or take them out, as another tool may."""
    with safe_open(path, "pt") as file:
        header, held = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    held |= {name: value for name, value in tensors.items() if value is not None}
    save_file(
        {name: value for name, value in held.items() if tensors.get(name, value) is not None}, path, header
    )


def test_half_precision_is_read_as_single(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    latent, path = latent_of(generator), tmp_path / "a.safetensors"
    save_latent(path, latent)
    assert latent.noise is not None
    rewritten(path, w_plus=latent.w_plus.half(), **{"noise.0": latent.noise[0].double()})
    back = load_latent(path)
    assert back.noise is not None
    assert back.w_plus.dtype == back.noise[0].dtype == torch.float32
    torch.testing.assert_close(back.w_plus, latent.w_plus, atol=1e-3, rtol=1e-3)
    rewritten(path, w_plus=latent.w_plus.int())
    with pytest.raises(
        UserError, match=r"a.safetensors: w_plus is of type torch.int32; a latent's is float32"
    ):
        load_latent(path)


def test_noise_maps_without_a_gap(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_latent(path, latent_of(generator))
    rewritten(path, **{"noise.0": None})
    with pytest.raises(
        UserError, match=r"a.safetensors: no noise.0; its 4 noise maps are numbered from 0 on"
    ):
        load_latent(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"label": torch.zeros(2)}, r"its label has shape \(2,\), this generator takes none"),
        (
            {"tuned": {"synthesis.b99.bias": torch.zeros(3)}},
            r"tuned synthesis.b99.bias has shape \(3,\), this generator has no such weight",
        ),
        (
            {"tuned": {"synthesis.b16.torgb.bias": torch.zeros(4)}},
            r"tuned synthesis.b16.torgb.bias has shape \(4,\), this generator takes \(3,\)",
        ),
        ({"tuned": {"mapping.w_avg": torch.zeros(8)}}, "tuned mapping.w_avg .* has no such weight"),
        ({"noise": [torch.zeros(4)] * 5}, r"its noise maps are \[\(4,\), .* takes \[\(1, 1, 4, 4\), "),
    ],
)
def test_all_of_a_latent_fits(generator: StyleGAN2Generator, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"a face.png: {says}"):
        replace(latent_of(generator), **fields).render(generator)


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
