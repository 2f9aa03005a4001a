"""StyleGAN2's projector as it was published, written out for one image, against the preset."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.losses.backbones import LPIPS_LAYERS, VGG16Features, random_vgg16
from i2i_lightning.methods.inversion import Search, Targets
from i2i_lightning.methods.inversion.targets import normal
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from tests.methods.inversions import generator, images, names, preset

STEPS, SEED = 20, 3


def unit_features(network: VGG16Features, image: Tensor) -> Tensor:
    """All features in one vector whose squared distance is the perceptual one."""
    parts = []
    for activation in network(image).values():
        unit = activation / (activation.square().sum(1, keepdim=True).sqrt() + 1e-10)
        height, width = unit.shape[2:]
        parts.append(unit.flatten() / math.sqrt(height * width * len(LPIPS_LAYERS)))
    return torch.cat(parts)


def published(
    network: StyleGAN2Generator, real: Tensor, name: str
) -> tuple[Tensor, list[Tensor], list[float]]:
    """Karras et al. 2020, appendix D; returns w, the noise maps and the loss of every step."""
    # Mean and deviation of w over ten thousand z.
    z = torch.from_numpy(np.random.RandomState(123).randn(10000, network.z_dim))
    with torch.no_grad():
        samples = network.mapping.to_w(z)
    w_avg = samples.mean(0, keepdim=True)
    w_std = float((samples - w_avg).square().sum() / 10000) ** 0.5

    vgg = VGG16Features(LPIPS_LAYERS, random_vgg16()).double()
    wanted = unit_features(vgg, real)
    w = w_avg.clone().requires_grad_()
    maps = [
        normal((1, 1, *shape), SEED, name, "noise", level).double().requires_grad_()
        for level, shape in enumerate(network.noise_shapes)
    ]
    optimizer = torch.optim.Adam([w, *maps], betas=(0.9, 0.999), lr=0.1)
    losses = []
    for step in range(STEPS):
        t = step / STEPS
        noise_size = w_std * 0.05 * max(0.0, 1.0 - t / 0.75) ** 2
        ramp = min(1.0, (1.0 - t) / 0.25)
        ramp = 0.5 - 0.5 * math.cos(ramp * math.pi)
        ramp = ramp * min(1.0, t / 0.05)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * ramp

        draw = normal((1, network.w_dim), SEED, name, "w_noise", 0, step).double()
        image = network.synthesis((w + draw * noise_size)[:, None].repeat(1, network.num_ws, 1), maps)
        distance = (unit_features(vgg, image) - wanted).square().sum()
        regulariser = torch.zeros([], dtype=torch.float64)
        for map_ in maps:
            level = map_
            while True:
                regulariser = regulariser + (level * level.roll(1, 3)).mean() ** 2
                regulariser = regulariser + (level * level.roll(1, 2)).mean() ** 2
                if level.shape[2] <= 8:
                    break
                level = F.avg_pool2d(level, 2)
        loss = distance + regulariser * 1e5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        with torch.no_grad():
            for map_ in maps:
                map_ -= map_.mean()
                map_ *= map_.square().mean().rsqrt()
    return w.detach(), [map_.detach() for map_ in maps], losses


def test_the_preset_is_the_published_algorithm() -> None:
    """Twenty steps in float64, three images in one batch, with the draws that belong to each."""
    parts = preset("stylegan2_projector")
    parts["stages"] = {name: replace(stage, steps=STEPS) for name, stage in parts["stages"].items()}
    network = generator(dtype=torch.float64)
    search = Search(network, seed=SEED, **parts)
    search.begin(Targets(images(3, torch.float64), names()))
    start = search.latent.detach().clone()
    while not search.done:
        search.step()
        if search.step_index == 1:
            assert torch.equal(search.latent, start)  # the first step has rate 0
    found = search.embedding()
    assert found.noise is not None
    curve = [point["total"] for point in found.trace]
    for index, name in enumerate(names()):
        w, maps, losses = published(network, images(3, torch.float64)[index : index + 1], name)
        assert (w - start[index]).abs().max() > 0.1
        torch.testing.assert_close(found.w_plus[index], w.expand(network.num_ws, -1), rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(found.noise, maps, strict=True):
            torch.testing.assert_close(mine[index], theirs[0], rtol=1e-9, atol=1e-9)
        ours = [values[index] for values in curve]
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), rtol=1e-9, atol=1e-9)
