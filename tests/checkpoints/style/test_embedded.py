"""The generator that is shipped: small, described, trained, and drawing faces."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from i2i_lightning.checkpoints import load_style_generator
from i2i_lightning.checkpoints.style.load import EMBEDDED
from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.images import ToyFacesPictures
from i2i_lightning.metrics.judge import STYLES, load_judge, to_judge
from i2i_lightning.metrics.judge_distance import judge_distance
from i2i_lightning.networks.style import StyleGenerator


@pytest.fixture(scope="module")
def generator() -> StyleGenerator:
    return load_style_generator("embedded")


def faces(generator: StyleGenerator, count: int) -> torch.Tensor:
    z = torch.randn(count, generator.z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return generator(z).clamp(-1, 1)


def test_file_is_small_and_says_how_it_was_made() -> None:
    assert EMBEDDED.stat().st_size <= 8 * 2**20
    with safe_open(EMBEDDED, "pt") as file:
        (text,) = file.metadata().values()
    provenance = json.loads(text)["provenance"]
    assert provenance["command"] == "i2i-train experiment=stylegan2_toy"
    assert provenance["kimg"] == 448
    assert 0 < provenance["scores"]["judge_distance"]["distance"] < 0.3


def test_it_has_learned_noise_and_a_usable_w(generator: StyleGenerator) -> None:
    strengths = torch.stack([layer.noise_strength.detach() for layer in generator.synthesis.layers])  # type: ignore[union-attr]
    assert (strengths != 0).all()
    assert strengths.abs().max() > 0.005
    z = torch.randn(4000, generator.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        w = generator.mapping.to_w(z)
    spread = (w - w.mean(0)).norm(dim=1).mean()
    assert (w.mean(0) - generator.w_avg).norm() < 0.1 * spread
    # Not all of W lies along one direction.
    values = torch.linalg.eigvalsh(torch.cov(w.T)).flip(0)
    assert values[0] < 0.5 * values.sum()


def test_it_draws_photos_of_different_faces(generator: StyleGenerator) -> None:
    images = faces(generator, 60)
    styles = load_judge().network(to_judge(images)).style.argmax(1)
    assert (styles == STYLES.index("photo")).float().mean() > 0.9
    differences = (images[:30] - images[30:]).square().mean((1, 2, 3))
    assert differences.min() > 0.01


@pytest.mark.slow
def test_samples_are_as_near_to_real_faces_as_the_header_says(generator: StyleGenerator) -> None:
    pictures = ToyFacesPictures(ToyFaces("test", generator.size_px, (), 300), "photo")
    real = torch.stack([torch.from_numpy(pictures[index][0]) for index in range(300)])
    distance, _ = judge_distance(faces(generator, 300), real, 200, 20)
    with safe_open(EMBEDDED, "pt") as file:
        (text,) = file.metadata().values()
    said = json.loads(text)["provenance"]["scores"]["judge_distance"]["distance"]
    assert distance == pytest.approx(said, abs=0.06)
