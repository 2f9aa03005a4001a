"""Network space to RGB."""

from __future__ import annotations

import numpy as np
import torch

from i2i_lightning.data.display import images_to_rgb, label_palette, labels_to_rgb
from i2i_lightning.data.transforms import one_hot, scale_to_network


def test_eight_bits_come_back_exactly() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 9, 8), dtype=np.uint8))
    assert torch.equal(images_to_rgb(scale_to_network(pixels)), pixels)


def test_values_are_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1 + 0.6 / 127.5, -1 + 0.4 / 127.5, 2.0]).view(1, 1, 1, 4)
    assert images_to_rgb(values)[0, 0, 0].tolist() == [0, 1, 0, 255]


def test_any_number_of_channels_can_be_shown() -> None:
    for channels in (1, 2, 3, 4, 7):
        shown = images_to_rgb(torch.zeros(2, channels, 4, 5))
        assert shown.shape == (2, 3, 4, 5)
        assert shown.dtype == torch.uint8
    grey = images_to_rgb(torch.linspace(-1, 1, 20).view(1, 1, 4, 5))
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert images_to_rgb(torch.ones(1, 2, 1, 1)).flatten().tolist() == [255, 255, 0]


def test_palette_tells_all_ids_apart() -> None:
    palette = label_palette(256)
    assert len({tuple(colour) for colour in palette.tolist()}) == 256
    # The first four colours of the PASCAL VOC palette.
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert torch.equal(label_palette(5), palette[:5])


def test_labels_are_painted_by_their_best_class() -> None:
    ids = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    shown = labels_to_rgb(one_hot(ids, 3))
    assert shown.shape == (1, 3, 2, 2)
    assert shown[0, :, 1, 0].tolist() == [0, 128, 0]
    own = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)
    assert labels_to_rgb(one_hot(ids, 3) * 0.2 - 5, own)[0, :, 0, 1].tolist() == [4, 5, 6]
