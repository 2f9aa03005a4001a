"""Edits of latents where no shell is needed: what a direction is refused for, and what is computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2i_lightning.checkpoints.directions import save_direction
from i2i_lightning.checkpoints.latents import Latent, save_latent
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling.edits.inputs import Reader
from i2i_lightning.sampling.edits.latents import AlongDirection
from i2i_lightning.sampling.edits.studio import Studio
from i2i_lightning.types import UserError

COUNT = 6


@pytest.fixture
def generator() -> StyleGAN2Generator:
    torch.manual_seed(0)
    made = StyleGAN2Generator(16, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    made.mapping.w_avg.normal_()
    return made.eval()


def studio_of(generator: StyleGAN2Generator, folder: Path) -> Studio:
    """Return a studio with latents called ``0``, ``1``, ..., which are in ``folder/latents`` too."""
    torch.manual_seed(1)
    w_plus = generator.mapping(torch.randn(COUNT, 8)).detach()
    fingerprint = generator.fingerprint()
    latents = [Latent(each.clone(), fingerprint, str(index)) for index, each in enumerate(w_plus)]
    for latent in latents:
        save_latent(folder / "latents" / f"{latent.name}.safetensors", latent)

    def loss() -> Any:
        raise AssertionError("no search is asked for")

    return Studio(generator, "tiny", folder / "out", latents, Reader(generator), loss)


def test_all_weights_are_digested_once(
    generator: StyleGAN2Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text("name,value\n0,1\n1,2\n2,4\n")
    seen, digest = [], StyleGenerator.fingerprint

    def counted(self: StyleGenerator) -> str:
        seen.append(1)
        return digest(self)

    studio = studio_of(generator, tmp_path)
    monkeypatch.setattr(StyleGenerator, "fingerprint", counted)
    studio.__post_init__()
    assert len(seen) == 1
    labelled = str(tmp_path / "latents")
    AlongDirection(labels=str(tmp_path / "x.csv"), labelled=labelled).direction(studio)
    AlongDirection(find="components", component=3, samples=100).direction(studio)
    AlongDirection(find="factorisation", component=3).direction(studio)
    assert len(seen) == 4  # the studio's own, and one for each that is found


def test_a_direction_is_not_kept_from_itself(
    generator: StyleGAN2Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    studio = studio_of(generator, tmp_path)
    component = AlongDirection(find="components", samples=100)
    file = "pca_0.safetensors"
    save_direction(file, vars(component.direction(studio)))
    with pytest.raises(UserError) as told:
        replace(component, orthogonal_to=file).direction(studio)
    assert str(told.value).startswith(f"operation.orthogonal_to={file}: of pca_0, ")
    assert "\n" not in str(told.value)
    second = replace(component, component=1, orthogonal_to=file).direction(studio)
    assert second.source.endswith("; without pca_0")
