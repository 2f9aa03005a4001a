"""A tiny generator, images for it, and the presets as their files have them, with few steps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from i2i_lightning import config
from i2i_lightning.losses.backbones import VGG16Features, random_vgg16
from i2i_lightning.losses.features import Perceptual, perceptual_loss
from i2i_lightning.methods.inversion import InversionLoss, Search, Stage, Start, Targets
from i2i_lightning.methods.inversion.method import Inversion
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator

CONF = Path(__file__).resolve().parents[2] / "conf"
PRESETS = sorted(path.stem for path in (CONF / "preset").glob("*.yaml"))
SIZE_PX = 16


def generator(label_dim: int = 0, dtype: torch.dtype = torch.float32) -> StyleGAN2Generator:
    torch.manual_seed(0)
    network = StyleGAN2Generator(
        SIZE_PX, 3, 8, 8, label_dim, mapping_layers=2, channel_base=128, channel_max=8
    )
    for layer in network.synthesis.layers:
        nn.init.constant_(layer.noise_strength, 0.2)
    return network.to(dtype)


def images(count: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth pictures that no generator here can draw."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, (SIZE_PX, SIZE_PX), mode="bicubic").clamp(0, 1)
    return (smooth * 2 - 1).to(dtype)


def names(count: int = 3) -> list[str]:
    return [f"face {index}" for index in range(count)]


def features(layers: tuple[str, ...] = ("conv1_1", "conv2_1")) -> Perceptual:
    """A random network that costs next to nothing."""
    network = VGG16Features(layers, random_vgg16(0.1))
    return Perceptual(network, perceptual_loss, "tiny", "a tiny random network")


def loss(**options: Any) -> InversionLoss:
    return InversionLoss(options.pop("perceptual", features()), **options)


@cache
def _preset(name: str) -> Any:
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("invert", overrides=[f"preset={name}", "loss.perceptual.name=substitute"])
    return OmegaConf.to_container(cfg.method, resolve=True)


def preset(name: str, steps: int = 4) -> dict[str, Any]:
    """Return ``stages``, ``loss`` and ``start`` of a preset, with ``steps`` steps a stage."""
    node = _preset(name)
    parts = {key: instantiate(node[key], _convert_="all") for key in ("stages", "loss", "start")}
    parts["stages"] = {key: replace(stage, steps=steps) for key, stage in parts["stages"].items()}
    return parts


def search(name: str, dtype: torch.dtype = torch.float32, steps: int = 4, seed: int = 0) -> Search:
    return Search(generator(dtype=dtype), seed=seed, **preset(name, steps))


def method(stages: dict[str, Stage], seed: int = 0, start: Start | None = None, **options: Any) -> Inversion:
    return Inversion(generator(), stages, loss(**options), start or Start(), seed)


def part(targets: Targets, index: int) -> Targets:
    """Return one of ``targets``."""
    return Targets(targets.real[index : index + 1], [targets.names[index]])
