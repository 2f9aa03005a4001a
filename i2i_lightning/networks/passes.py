"""When several batches may go through a network together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from i2i_lightning.networks.layers import SpectralConv2d


def treats_images_alone(network: nn.Module) -> bool:
    """Return whether an image's output depends on that image and the parameters alone, at any pass.

    Batch norm mixes images and counts passes, spectral normalisation improves its estimate at each pass, and
    dropout draws for each pass: with one of them, one pass over two batches is not two passes.
    """
    mixing = (_BatchNorm, SpectralConv2d)
    return not any(
        isinstance(layer, mixing) or (isinstance(layer, _DropoutNd) and layer.p > 0)
        for layer in network.modules()
    )


def each(network: nn.Module, batches: Sequence[Tensor], together: bool) -> list[Tensor]:
    """Return the network's output for each of ``batches``, ``(N, C, H, W)`` each.

    Args:
        network: Maps images to images or logits.
        batches: One or more.
        together: Whether they may share a pass, because the network :func:`treats_images_alone`. Batches of
            different sizes never do.
    """
    if not together or len({batch.shape[1:] for batch in batches}) > 1:
        return [network(batch) for batch in batches]
    outputs: Tensor = network(torch.cat(list(batches)))
    return list(torch.split(outputs, [len(batch) for batch in batches]))
