"""Every back-end passes through the compiler in one piece, and gives the same image."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.networks.mobile_stylegan import MobileStyleGAN
from i2i_lightning.networks.style import ARCHITECTURES, StyleGenerator
from i2i_lightning.networks.stylegan1 import StyleGAN1Generator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator


def small(name: str) -> StyleGenerator:
    torch.manual_seed(0)
    if name == "stylegan1":
        return StyleGAN1Generator(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)
    if name == "mobile_stylegan":
        return MobileStyleGAN((8, 8, 8), z_dim=8, w_dim=8, mapping_layers=2)
    return StyleGAN2Generator(16, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_synthesis_and_mapping_are_one_graph(name: str) -> None:
    generator = small(name).eval()
    z = torch.randn(2, 8)
    with torch.no_grad():
        w_plus = generator.mapping(z)
        image = generator.synthesis(w_plus)
        # The front end decides what can be compiled; kernels of its own would need a C++ compiler.
        mapping = torch.compile(generator.mapping, backend="eager", fullgraph=True)
        synthesis = torch.compile(generator.synthesis, backend="eager", fullgraph=True)
        torch.testing.assert_close(mapping(z), w_plus)
        torch.testing.assert_close(synthesis(w_plus), image)
