"""A history of generated images, from which discriminators are shown some."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from i2i_lightning.types import UserError

_STREAM = 2
"""Keeps the draws apart from those of the data, which take the streams below (``data.sampler``)."""


class ImagePool:
    """Show a discriminator old fakes among the new ones (Shrivastava et al. 2017, section 2.3).

    The first ``size`` images are kept and shown as they are. Each later one is, with probability 1/2, shown
    as it is; else an image drawn from the pool is shown, and the new one takes its place (the rule of
    CycleGAN's code; Zhu et al. 2017, section 4, names the 50 images).

    Whether and where image ``n`` is exchanged is a pure function of ``(seed, stream, rank, n)``, known to the
    host without asking the device. Every process has a pool of its own: these are no buffers, which a
    distributed run would overwrite with those of the first process.

    Args:
        size: Images in the pool; 0 shows every image as it is.
        seed: Seed of the draws.
        stream: Tells the pools of a method apart.

    Attributes:
        images: The images kept, each (C, H, W), detached.
        seen: Images that have been shown to the pool so far.
        rank: The process that this pool belongs to.
    """

    def __init__(self, size: int = 50, seed: int = 0, stream: int = 0) -> None:
        if size < 0:
            raise UserError(f"method.pool_size={size}: give 0 for no pool, or more")
        self.size = size
        self.seed = seed
        self.stream = stream
        self.images: list[Tensor] = []
        self.seen = 0
        self.rank = 0

    def __call__(self, fakes: Tensor) -> Tensor:
        """Return what a discriminator is shown for the new ``fakes``, (N, C, H, W), detached."""
        fakes = fakes.detach()
        if self.size == 0:
            return fakes
        return torch.stack([self._exchange(fake) for fake in fakes])

    def _exchange(self, fake: Tensor) -> Tensor:
        number, self.seen = self.seen, self.seen + 1
        if len(self.images) < self.size:
            self.images.append(fake.clone())  # a view would keep the whole batch
            return fake
        swaps, place = self.draw(number)
        if not swaps:
            return fake
        old, self.images[place] = self.images[place], fake.clone()
        return old.to(fake.device)  # from the CPU, if it came with a checkpoint

    def draw(self, number: int) -> tuple[bool, int]:
        """Return whether image ``number`` is exchanged, and with which of the pool."""
        counter = [0, _STREAM + self.stream, self.rank, number]
        coin, place = np.random.Generator(np.random.Philox(key=self.seed, counter=counter)).random(2)
        return bool(coin > 0.5), int(place * self.size)

    def state_dict(self) -> dict[str, Any]:
        """Return the content as plain containers."""
        return {"images": [image.cpu() for image in self.images], "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; of a larger pool, the first images."""
        self.images = [image.clone() for image in state["images"][: self.size]]
        self.seen = int(state["seen"])
