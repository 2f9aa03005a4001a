"""How a generator runs on one image after training: its norms, its dropout and its noise.

In test mode ``train`` (Isola et al. 2017, section 3.3) dropout stays on, and batch norm takes its statistics
from the test image instead of the running ones. Over a batch of one image that is instance norm with the
batch norm's affine parameters, which is how it is done here for batches of any size: an image comes out the
same alone, in a batch, and in any order.

For the same reason dropout draws nothing from a generator whose state depends on what ran before. Whether an
activation is kept is a hash of the image's seed, the layer, the channel and the position *in the whole
image*: the same on every device, and the same in each of several overlapping tiles of one image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from i2i_lightning.networks.layers import at_least_float32

TestMode = Literal["train", "eval"]

_WORD = 0xFFFFFFFF
# An odd multiplier below 2**31, so that its product with 32 bits fits into a signed 64-bit integer.
_MULTIPLIER = 0x045D9F3B


@dataclass(frozen=True)
class Draws:
    """What decides the random numbers of a batch: whose pictures they are, and which part is seen.

    Args:
        seeds: A seed for each image of the batch, 0 to 2**63 - 1.
        corners: (top, left) in pixels of what each shows of its whole image; None for whole images.
    """

    seeds: Sequence[int]
    corners: Sequence[tuple[int, int]] | None = None


@dataclass
class ImageStatistics:
    """Mean and variance of each norm layer over one image, so that all its tiles are normalised alike.

    While ``frozen`` is false the norms take the statistics of what they are given, over the whole batch, and
    leave them here. Once it is true they take them from here.

    Args:
        frozen: Whether the statistics are complete.
        moments: By number of the layer: mean and variance, float32 ``(C,)``.
    """

    frozen: bool = False
    moments: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


def image_seed(seed: int, key: str) -> int:
    """Return the seed of the image called ``key`` under the user's ``seed``: 0 to 2**63 - 1."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def noise(seeds: Sequence[int], z_dim: int) -> Tensor:
    """Return N(0, 1) noise ``(N, z_dim)`` on the CPU, each row a function of its seed alone."""
    rows = [torch.randn(z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def depends_on_image(network: nn.Module, mode: TestMode) -> bool:
    """Return whether ``network`` normalises by statistics of the image, so that tiles of one would differ."""
    kinds = (_InstanceNorm, _BatchNorm) if mode == "train" else _InstanceNorm
    return any(isinstance(module, kinds) for module in network.modules())


@contextmanager
def in_test_mode(
    network: nn.Module, mode: TestMode, draws: Draws, statistics: ImageStatistics | None = None
) -> Iterator[nn.Module]:
    """Lend ``network`` for one forward pass in test mode, and put it back as it was.

    No gradient is recorded and no buffer changes: neither running statistics nor spectral norms.

    Args:
        network: The generator.
        mode: ``train``: batch norm by the statistics of each image, dropout on. ``eval``: batch norm by
            running statistics, dropout off.
        draws: The seeds of the images in the batch, for dropout.
        statistics: Shared by all passes over the tiles of one image; None normalises each item of the batch
            by its own.
    """
    replaced: list[nn.Module] = []
    norms = drops = 0
    before = [(module, module.training) for module in network.modules()]
    height_px: list[int] = []
    # The height of the input tells a dropout layer how many pixels one of its rows stands for.
    hook = network.register_forward_pre_hook(lambda _, inputs: height_px.append(inputs[0].shape[-2]))
    try:
        network.eval()
        for module in network.modules():
            forward: Callable[[Tensor], Tensor] | None = None
            if isinstance(module, (_BatchNorm, _InstanceNorm)):
                if mode == "train" if isinstance(module, _BatchNorm) else statistics is not None:
                    forward = _Norm(module, norms, statistics)
                    norms += 1
            elif isinstance(module, _DropoutNd) and mode == "train":
                forward = _Dropout(module, drops, draws, height_px)
                drops += 1
            if forward is not None:
                module.__dict__["forward"] = forward  # before the class's own, without a second copy
                replaced.append(module)
        with torch.no_grad():
            yield network
    finally:
        hook.remove()
        for module in replaced:
            del module.__dict__["forward"]
        for module, training in before:
            module.training = training


class _Norm:
    """The forward of a batch or instance norm by the statistics of the image."""

    def __init__(self, norm: _BatchNorm | _InstanceNorm, number: int, statistics: ImageStatistics | None):
        self.norm, self.number, self.statistics = norm, number, statistics

    def __call__(self, x: Tensor) -> Tensor:
        norm, inner = self.norm, at_least_float32(x)
        weight = None if norm.weight is None else norm.weight.to(inner.dtype)
        bias = None if norm.bias is None else norm.bias.to(inner.dtype)
        if self.statistics is None:
            return F.instance_norm(inner, weight=weight, bias=bias, eps=norm.eps).to(x.dtype)
        if self.statistics.frozen:
            mean, var = self.statistics.moments[self.number]
        else:
            var, mean = torch.var_mean(inner, dim=(0, 2, 3), correction=0)
            self.statistics.moments[self.number] = mean, var
        return F.batch_norm(inner, mean, var, weight, bias, training=False, eps=norm.eps).to(x.dtype)


class _Dropout:
    """The forward of a dropout layer with a mask that depends on seed, layer and position alone."""

    def __init__(self, dropout: _DropoutNd, number: int, draws: Draws, height_px: list[int]):
        if type(dropout) is not nn.Dropout:
            raise ValueError(f"{type(dropout).__name__} in a generator: only nn.Dropout is supported")
        self.p, self.number, self.draws, self.height_px = dropout.p, number, draws, height_px

    def __call__(self, x: Tensor) -> Tensor:
        draws = self.draws
        if len(draws.seeds) != len(x):
            raise ValueError(f"{len(draws.seeds)} seeds for {len(x)} images")
        corners = draws.corners or [(0, 0)] * len(x)
        # A row here stands for so many pixels; tiles begin at multiples of it.
        stride = max(self.height_px[-1] // x.shape[-2], 1)
        out = torch.empty_like(x)
        for image, result, seed, (top, left) in zip(x, out, draws.seeds, corners, strict=True):
            corner = top // stride, left // stride
            kept = kept_mask(seed, self.number, image.shape, corner, self.p, x.device)
            torch.mul(image, kept, out=result)
        return out.mul_(1 / (1 - self.p)) if self.p < 1 else out.zero_()


def kept_mask(
    seed: int,
    layer: int,
    shape: Sequence[int],
    corner: tuple[int, int],
    p: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return which activations of one image a dropout layer keeps, bool ``(C, H, W)``.

    Args:
        seed: The image's seed.
        layer: The number of the layer in the network.
        shape: (C, H, W) of what is shown.
        corner: Row and column of its first activation in the whole image's map.
        p: The probability of being dropped.
        device: Where the mask is made; it is the same on all.
    """
    digest = hashlib.blake2b(f"{seed}/{layer}".encode(), digest_size=4).digest()
    channels, height, width = shape

    def numbers(start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, dtype=torch.int64, device=device)

    # Channel by channel, then row by row, then column by column: only the last is as large as the mask.
    planes = _mix(numbers(int.from_bytes(digest, "big"), channels) & _WORD)
    rows = _mix((planes[:, None] + numbers(corner[0], height)) & _WORD)
    bits = _mix((rows[:, :, None] + numbers(corner[1], width)) & _WORD)
    return bits >= round(p * 2**32)


def _mix(word: Tensor) -> Tensor:
    """Scramble 32-bit words, in place: two rounds of xor-shift and multiply (the murmur family of hashes)."""
    for _ in range(2):
        word.bitwise_xor_(word >> 16).mul_(_MULTIPLIER).bitwise_and_(_WORD)
    return word.bitwise_xor_(word >> 16)
