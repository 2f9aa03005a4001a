"""IR-SE50: its size; what it computes is compared where its file is read, in tests/checkpoints."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.networks.arcface import IRSE50


def test_its_parameters_are_those_of_the_layers_written_out() -> None:
    first = 3 * 64 * 9 + 2 * 64 + 64  # convolution, norm, slopes

    def unit(into: int, out: int) -> int:
        shortcut = 0 if into == out else into * out + 2 * out
        residual = 2 * into + 9 * into * out + out + 9 * out * out + 2 * out + 2 * out * (out // 16)
        return shortcut + residual

    stages = (
        3 * unit(64, 64)
        + unit(64, 128)
        + 3 * unit(128, 128)
        + unit(128, 256)
        + 13 * unit(256, 256)
        + unit(256, 512)
        + 2 * unit(512, 512)
    )
    last = 2 * 512 + (512 * 7 * 7 + 1) * 512 + 2 * 512
    with torch.device("meta"):
        network = IRSE50()
    assert len(network.body) == 24
    assert sum(p.numel() for p in network.parameters()) == first + stages + last == 43_797_696


@pytest.mark.parametrize("shape", [(1, 3, 128, 128), (1, 1, 112, 112)])
def test_faces_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = IRSE50()
        with pytest.raises(ValueError, match=r"takes \(N, 3, 112, 112\), these are \(1, "):
            network(torch.zeros(shape))
