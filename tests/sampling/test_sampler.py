"""Seeds to images: the same whatever the batch; mixtures with themselves; ways that pass through samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan1 import StyleGAN1Generator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling.sampler import Sampler, frame_count
from i2i_lightning.types import UserError


def tiny(label_dim: int = 0, cls: type = StyleGAN2Generator, size_px: int = 64) -> StyleGenerator:
    """A random generator whose pictures differ, and whose noise and mean latent matter."""
    torch.manual_seed(0)
    generator: StyleGenerator = cls(
        size_px, z_dim=16, w_dim=12, label_dim=label_dim, channel_base=512, channel_max=16
    )
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength") or "noise" in name:
            value.data.fill_(0.3)
    generator.mapping.w_avg.normal_()
    return generator


GENERATORS = {
    "stylegan2": lambda: tiny(),
    "conditional": lambda: tiny(label_dim=3),
    "stylegan1": lambda: tiny(cls=StyleGAN1Generator, size_px=32),
}


def images(sampler: Sampler, seeds: list[int], label: int | None = None) -> Tensor:
    return torch.stack([image for _, _, image in sampler.samples(seeds, label)])


def test_a_seed_is_the_z_of_nvidias_programs() -> None:
    generator = tiny()
    z = torch.from_numpy(np.random.RandomState(85).randn(1, generator.z_dim)).float()
    torch.testing.assert_close(Sampler(generator).z([3, 85])[1:], z, rtol=0, atol=0)
    ((seed, points, image),) = Sampler(generator, truncation=0.6, cutoff=4).samples([85])
    assert seed == 85
    with torch.no_grad():
        torch.testing.assert_close(points.w_plus, generator.mapping(z, truncation=0.6, cutoff=4))
        torch.testing.assert_close(image, generator(z, truncation=0.6, cutoff=4)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_same_seed_same_picture_whatever_the_batch(kind: str, noise: str) -> None:
    generator = GENERATORS[kind]()
    label = 1 if generator.label_dim else None
    seeds = [5, 0, 7, 3, 11]
    together, alone, twos = (
        images(Sampler(generator, truncation=0.8, noise=noise, batch_size=size), seeds, label)
        for size in (5, 1, 2)
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, twos, atol=1e-4, rtol=1e-4)
    again = images(Sampler(generator, truncation=0.8, noise=noise), list(reversed(seeds)), label)
    torch.testing.assert_close(together, again.flip(0), atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_noise_changes_the_picture_and_truncation_takes_it_to_the_mean() -> None:
    generator = tiny()
    const, random, none = (
        images(Sampler(generator, noise=noise), [4]) for noise in ("const", "random", "none")
    )
    assert min((const - random).abs().max(), (const - none).abs().max(), (random - none).abs().max()) > 0.01
    torch.manual_seed(9)  # random noise depends on the seed alone
    assert torch.equal(random, images(Sampler(generator, noise="random"), [4]))
    mean = images(Sampler(generator, truncation=0), [4, 5])
    torch.testing.assert_close(mean[0], mean[1])
    rows = generator.num_ws
    assert torch.equal(images(Sampler(generator, truncation=0.5, cutoff=0), [4]), const)
    truncated = images(Sampler(generator, truncation=0.5, cutoff=rows), [4])
    assert torch.equal(truncated, images(Sampler(generator, truncation=0.5), [4]))
    assert not torch.equal(truncated, const)


def test_classes_change_the_picture() -> None:
    sampler = Sampler(tiny(label_dim=3))
    assert (images(sampler, [0], 0) - images(sampler, [0], 2)).abs().max() > 0.01


@pytest.mark.parametrize("noise", ["const", "random"])
def test_the_diagonal_of_a_mixing_matrix_is_the_samples(noise: str) -> None:
    sampler = Sampler(tiny(), truncation=0.9, noise=noise, batch_size=2)
    seeds = [2, 7, 4]
    alone = images(sampler, seeds)
    for rows in ([0, 1, 2], [5], list(range(10))):
        matrix = torch.stack(list(sampler.mixtures(seeds, seeds, rows))).unflatten(0, (3, 3))
        for index in range(3):
            torch.testing.assert_close(matrix[index, index], alone[index], atol=1e-4, rtol=1e-4)
        assert (matrix[0, 1] - matrix[1, 0]).abs().max() > 0.01


def test_all_rows_from_the_top_give_the_top_and_none_the_left() -> None:
    sampler = Sampler(tiny())
    bases, styles = [0, 1], [5, 6, 7]
    every = torch.stack(list(sampler.mixtures(bases, styles, range(10)))).unflatten(0, (2, 3))
    nothing = torch.stack(list(sampler.mixtures(bases, styles, []))).unflatten(0, (2, 3))
    torch.testing.assert_close(every[0], images(sampler, styles), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(every[1], images(sampler, styles), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(nothing[:, 2], images(sampler, bases), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize("noise", ["const", "random"])
@pytest.mark.parametrize("loop", [True, False])
def test_interpolation_passes_through_the_samples(space: str, noise: str, loop: bool) -> None:
    sampler = Sampler(tiny(), truncation=0.7, noise=noise, batch_size=3)
    seeds = [3, 8, 1]
    alone = images(sampler, seeds)
    frames = torch.stack(list(sampler.interpolation(seeds, 4, space, loop)))  # type: ignore[arg-type]
    assert len(frames) == frame_count(3, 4, loop) == (12 if loop else 9)
    torch.testing.assert_close(frames[::4], alone, atol=1e-4, rtol=1e-4)
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    direct = (alone[1] - alone[0]).abs().mean()
    assert steps.min() > 0
    assert steps[:4].max() < direct  # small steps on the way, no jump
    if loop:
        assert (frames[-1] - frames[0]).abs().mean() < (alone[2] - alone[0]).abs().mean()


def test_the_two_ways_differ_in_between_alone() -> None:
    sampler = Sampler(tiny())
    z, w = (
        torch.stack(list(sampler.interpolation([0, 1], 2, space, loop=False)))  # type: ignore[arg-type]
        for space in ("z", "w")
    )
    torch.testing.assert_close(z[::2], w[::2], atol=1e-4, rtol=1e-4)
    assert (z[1] - w[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cutoff": 11}, "cutoff=11: this generator has 10 rows of w_plus"),
        ({"cutoff": -1}, "cutoff=-1: this generator has 10 rows"),
        ({"truncation": float("nan")}, "truncation=nan: give a number"),
        ({"noise": "randm"}, "noise=randm: choose one of const, random, none (did you mean random?)"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ],
)
def test_impossible_options(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=r".") as slip:
        Sampler(tiny(), **options)  # type: ignore[arg-type]
    assert str(slip.value).startswith(says)
    assert "\n" not in str(slip.value)


@pytest.mark.parametrize(
    ("classes", "label", "says"),
    [
        (0, 0, "label=0: this generator is unconditional; leave it out"),
        (3, None, "label: this generator has 3 classes; give label=0 to 2"),
        (3, 3, "label=3: this generator has classes from 0 to 2"),
    ],
)
def test_impossible_classes(classes: int, label: int | None, says: str) -> None:
    with pytest.raises(UserError) as slip:
        Sampler(tiny(classes)).points([0], label)
    assert str(slip.value) == says
