"""What images are wanted, and where; and random numbers that belong to an image, not to a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError


@dataclass
class Targets:
    """Images to embed together. Masks are in [0, 1] and belong to pixels of the full size.

    Every tensor but ``real`` may have one item for all images.

    Args:
        real: x, float (N, C, S, S) in [-1, 1].
        names: One per image: together with the seed, they decide over all random numbers of an image.
        label: (N, K) for a conditional generator.
        mask: M_m, (N, 1, S, S): pixels that count in the squared error; None: all.
        perceptual_mask: M_p, (N, 1, S, S): where features count; None: where pixels do.
        outside: y of the second squared error, (N, C, S, S), which counts outside of the mask.
        style: The image whose style is wanted, (N, C, S, S).
        style_mask: M_s, (N, 1, S, S): where its style counts; None: everywhere.
        anchor: Latent not to go far from, (N, L, D); None: the one that the stage begins with.
        holes: Whether what images show outside of their masks is unknown, and not only of no account:
            features near a border see beyond it, so they are taken of both sides made grey there.
    """

    real: Tensor
    names: Sequence[str]
    label: Tensor | None = None
    mask: Tensor | None = None
    perceptual_mask: Tensor | None = None
    outside: Tensor | None = None
    style: Tensor | None = None
    style_mask: Tensor | None = None
    anchor: Tensor | None = None
    holes: bool = False

    def __len__(self) -> int:
        return len(self.real)

    @property
    def lacking(self) -> set[str]:
        """Terms of the objective whose images are not given."""
        lacking = set() if self.style is not None else {"style"}
        return lacking if self.outside is not None and self.mask is not None else lacking | {"mse_outside"}

    def check(self, generator: StyleGenerator) -> None:
        """Raise ``UserError``, naming the image, where something does not fit ``generator``."""
        size, channels = generator.size_px, generator.channels
        if len(self.names) != len(self):
            raise UserError(f"{len(self.names)} names for {len(self)} images")
        for key in ("real", "outside", "style"):
            image = getattr(self, key)
            if image is None:
                continue
            if image.dim() != 4 or image.shape[1] != channels:
                kind = {1: "grey images", 3: "RGB images"}.get(channels, f"{channels} channels")
                raise UserError(
                    f"{self._first(key)}: shape {tuple(image.shape)}; this generator draws {kind} of "
                    f"{size}x{size} px, as (N, {channels}, {size}, {size})"
                )
            if image.shape[-2:] != (size, size):
                height, width = image.shape[-2:]
                raise UserError(
                    f"{self._first(key)}: {width}x{height} px (width x height); this generator draws "
                    f"{size}x{size} px: crop and resize it"
                )
        for key in ("mask", "perceptual_mask", "style_mask"):
            mask = getattr(self, key)
            if mask is None:
                continue
            if mask.dim() != 4 or mask.shape[1:] != (1, size, size):
                raise UserError(
                    f"{key} has shape {tuple(mask.shape)}: "
                    f"the images take (1 or {len(self)}, 1, {size}, {size})"
                )
            if float(mask.min()) < 0 or float(mask.max()) > 1:
                raise UserError(
                    f"{key}: values from {float(mask.min()):g} to {float(mask.max()):g}; give 0 to 1"
                )
            empty = (mask.flatten(1).amax(1) == 0).nonzero().flatten().tolist()
            if empty:
                raise UserError(f"{self._name(empty[0])}: its {key} is empty, so that nothing would count")
        if self.anchor is not None and self.anchor.shape[1:] != (generator.num_ws, generator.w_dim):
            raise UserError(
                f"anchor has shape {tuple(self.anchor.shape)}: this generator's latents are "
                f"(N, {generator.num_ws}, {generator.w_dim})"
            )
        if (self.label is not None) != (generator.label_dim > 0):
            raise UserError(
                "label: this generator takes none"
                if generator.label_dim == 0
                else f"label: this generator takes one of length {generator.label_dim} per image"
            )
        for key, value in self._tensors().items():
            if len(value) not in (1, len(self)):
                raise UserError(f"{key}: {len(value)} given for {len(self)} images")
            wrong = (~torch.isfinite(value.flatten(1)).all(1)).nonzero().flatten().tolist()
            if wrong:
                raise UserError(f"{self._name(wrong[0])}: its {key} holds NaN or infinity")

    def to(self, device: torch.device, dtype: torch.dtype) -> Targets:
        """Return the same with all tensors on ``device``, as ``dtype``."""
        moved: dict[str, Any] = {key: value.to(device, dtype) for key, value in self._tensors().items()}
        return replace(self, names=list(self.names), **moved)

    def rows(self, key: str, index: Tensor) -> Tensor | None:
        """Return the items of the tensor ``key`` for the images ``index``, or the one that is for all."""
        value: Tensor | None = getattr(self, key)
        return value if value is None or len(value) == 1 else value[index]

    def _tensors(self) -> dict[str, Tensor]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _first(self, key: str) -> str:
        return self._name(0) if key == "real" else key

    def _name(self, index: int) -> str:
        return str(self.names[min(index, len(self.names) - 1)]) if self.names else "target"


def normal(shape: Sequence[int], seed: int, *key: str | int) -> Tensor:
    """Return draws from N(0, 1) that ``seed`` and ``key`` decide, float32 on the CPU.

    Nothing else does: neither the batch, nor the device, nor what was drawn before, so that a batch draws
    what its images would alone, and a resumed search what the uninterrupted one would.
    """
    return torch.randn(*shape, generator=_generator(seed, *key))


def uniform(shape: Sequence[int], seed: int, *key: str | int) -> Tensor:
    """Return draws from U(-1, 1), as :func:`normal`."""
    return torch.rand(*shape, generator=_generator(seed, *key)) * 2 - 1


def _generator(seed: int, *key: str | int) -> torch.Generator:
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
