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
from i2i_lightning.sampling.edits.directions import AlongDirection
from i2i_lightning.sampling.edits.inputs import Reader
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"name,value\n0,0.5\n1,0.5\n2,0.5\n", "x.csv: all 3 latents have 0.5; give some that differ"),
        (b"name,value\n0,1\n1,1\n", "x.csv: all 2 latents have 1; give some that differ"),
        (b"name,value\n0,1\n1,nan\n", "x.csv, line 3: 'nan' is no finite number"),
        (b"name,value\n0,1\n1,-inf\n", "x.csv, line 3: '-inf' is no finite number"),
        (b"name,value\n0,1e300\n1,2\n", "x.csv, line 2: '1e300' is no finite number"),
        (b"name,value\n0,1\n1,2\n0,1\n0,3\n", "x.csv, line 5: '0' has 3 here and 1 above; leave one value"),
        (b"name,value\n0,1\n1\n", "x.csv, line 3: None is no number"),
        ("name,value\nö,1\n".encode("latin-1"), "x.csv: is not UTF-8; save it as CSV in UTF-8"),
        ("name,value\n0,1\n".encode("utf-16"), "x.csv: is not UTF-8; save it as CSV in UTF-8"),
        (b'name,value\n0,"' + b"1" * 200_000 + b'"\n', "x.csv: cannot be read (field larger than"),
    ],
)
def test_labels_are_checked_before_anything_is_written(
    generator: StyleGAN2Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_bytes(text)
    studio = studio_of(generator, tmp_path)
    with pytest.raises(UserError) as told:
        AlongDirection(labels="x.csv").run(studio)
    assert str(told.value).startswith(f"operation.labels={says}")
    assert "\n" not in str(told.value)
    assert not studio.folder.exists()


def test_labels_of_a_spreadsheet(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    lines = [f"{index},{index / 10}" for index in range(COUNT)]
    file = tmp_path / "x.csv"
    file.write_bytes("\r\n".join(["name,value", *lines, ""]).encode("utf-8-sig"))
    direction = AlongDirection(labels=str(file)).direction(studio_of(generator, tmp_path))
    assert direction.source == f"{COUNT} latents labelled by x.csv"


def test_labels_of_one_latent_alone(generator: StyleGAN2Generator, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    studio = studio_of(generator, tmp_path)
    studio.latents = [replace(studio.latents[0], name=str(index)) for index in range(3)]
    for values in ("0,0.3\n1,0.5", "0,1\n1,0"):
        file.write_text(f"name,value\n{values}\n")
        with pytest.raises(UserError, match="latents: all 2 that are labelled are the same"):
            AlongDirection(labels=str(file)).direction(studio)
