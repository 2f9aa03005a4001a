from __future__ import annotations

import pytest
import torch
from torch import nn

from i2i_lightning.networks.passes import each, treats_images_alone
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet


@pytest.mark.parametrize(
    ("network", "alone"),
    [
        (lambda: ResNetGenerator(3, 3, 4, 1), True),
        (lambda: ResNetGenerator(3, 3, 4, 1, norm="none"), True),
        (lambda: ResNetGenerator(3, 3, 4, 1, norm="batch"), False),
        (lambda: ResNetGenerator(3, 3, 4, 1, dropout=True), False),
        (lambda: UNet(3, 3, 5, 4, norm="instance", dropout="none"), True),
        (lambda: UNet(3, 3, 5, 4, norm="instance", dropout="paper"), False),
        (lambda: PatchGAN(3, 4, norm="instance"), True),
        (lambda: PatchGAN(3, 4, norm="syncbatch"), False),
        (lambda: PatchGAN(3, 4, norm="none", spectral_norm=True), False),
    ],
)
def test_networks(network: object, alone: bool) -> None:
    assert treats_images_alone(network()) is alone  # type: ignore[operator]


@pytest.mark.parametrize("together", [True, False])
def test_each_gives_every_batch_its_own_output(together: bool) -> None:
    calls = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return x * 2

    batches = [torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)]
    outputs = each(Spy(), batches, together)
    assert calls == ([3] if together else [2, 1])
    assert all(torch.equal(output, 2 * batch) for output, batch in zip(outputs, batches, strict=True))
    calls.clear()
    each(Spy(), [torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 4)], together)
    assert calls == [1, 1]
