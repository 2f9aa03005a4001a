"""What every style-based generator offers, whatever paper it is from: what inversion and editing stand on.

``z (N, z_dim)`` is mapped to ``w (N, w_dim)``, broadcast to one row per layer, ``w_plus (N, num_ws, w_dim)``,
and synthesised. Karras et al. 2019 (arXiv 1812.04948, section 2) name the spaces, Abdal et al. 2019
(arXiv 1904.03189, section 4) the extended one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from i2i_lightning.networks.layers import at_least_float32
from i2i_lightning.types import UserError

Noise = Literal["const", "random", "none"] | Sequence[Tensor]
"""Where noise inputs come from: the stored maps, fresh draws from N(0, 1), nowhere, or one map for each of
``noise_shapes``, ``(1 or N, 1, h, w)``."""
Tap = Callable[[Tensor], Tensor]
"""Receives the activation of a layer and returns what takes its place: itself, to read without a change."""

ARCHITECTURES = {
    "stylegan2": ("i2i_lightning.networks.stylegan2.generator", "StyleGAN2Generator"),
    "stylegan1": ("i2i_lightning.networks.stylegan1", "StyleGAN1Generator"),
    "mobile_stylegan": ("i2i_lightning.networks.mobile_stylegan", "MobileStyleGAN"),
}
"""Module and class of each back-end, by the ``architecture`` of its config."""


class StyleGenerator(nn.Module):
    """A generator controlled by one style vector per layer.

    A back-end sets the attributes below, and two sub-modules: ``mapping``, a :class:`Mapping`, and
    ``synthesis``, called as ``synthesis(w_plus, noise="const", taps=None)``. It returns float images
    ``(N, channels, size_px, size_px)`` in about [-1, 1].

    Attributes:
        architecture: The back-end's name in :data:`ARCHITECTURES`.
        z_dim: Length of z.
        w_dim: Length of w.
        num_ws: Rows of w_plus.
        label_dim: Length of the label; 0 for an unconditional generator.
        size_px: Side of the square images.
        channels: Channels of the images.
        arguments: What the constructor was given, as plain values.
    """

    architecture: str
    z_dim: int
    w_dim: int
    num_ws: int
    label_dim: int
    size_px: int
    channels: int
    arguments: dict[str, Any]
    mapping: StyleMapping
    synthesis: nn.Module

    @property
    def w_avg(self) -> Tensor:
        """The mean latent, ``(w_dim,)``: the centre of truncation and the start of an inversion."""
        return self.mapping.w_avg

    @property
    def noise_shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every noise input, from coarse to fine."""
        return tuple((map_.shape[-2], map_.shape[-1]) for map_ in self._noise_buffers())

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names that ``taps`` may use, in the order in which the layers run."""
        raise NotImplementedError

    @property
    def row_names(self) -> tuple[str, ...]:
        """What each row of w_plus drives, coarse to fine."""
        raise NotImplementedError

    def _noise_buffers(self) -> list[Tensor]:
        """Return the stored noise maps themselves, each (h, w)."""
        raise NotImplementedError

    def noise_maps(self) -> list[Tensor]:
        """Return copies of the stored noise maps, each ``(1, 1, h, w)``."""
        return [map_.detach().clone()[None, None] for map_ in self._noise_buffers()]

    @property
    def config(self) -> dict[str, Any]:
        """What :func:`build` makes the same network from, as plain containers."""
        return {"architecture": self.architecture, **self.arguments}

    def forward(
        self,
        z: Tensor,
        label: Tensor | None = None,
        truncation: float = 1.0,
        cutoff: int | None = None,
        noise: Noise = "const",
    ) -> Tensor:
        """Return the images of ``z (N, z_dim)``; see :meth:`StyleMapping.forward` for the truncation."""
        image: Tensor = self.synthesis(self.mapping(z, label, truncation, cutoff), noise)
        return image

    def activations(self, w_plus: Tensor, names: Sequence[str], noise: Noise = "const") -> dict[str, Tensor]:
        """Return the activations of the layers ``names`` on the way to the image of ``w_plus``.

        Raises:
            UserError: If there is no such layer.
        """
        found: dict[str, Tensor] = {}

        def reader(name: str) -> Tap:
            def read(activation: Tensor) -> Tensor:
                found[name] = activation
                return activation

            return read

        self.synthesis(w_plus, noise, {name: reader(name) for name in names})
        return found

    def draw(
        self, w_plus: Tensor, noise: Noise = "const", tuned: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the images of ``w_plus``, with ``tuned`` weights in place of those of their names.

        Args:
            w_plus: Latents.
            noise: As for ``synthesis``.
            tuned: Weights ``synthesis.<name>``, as pivotal tuning leaves them; None for the generator's own.
        """
        weights = {name.removeprefix("synthesis."): value.to(w_plus) for name, value in (tuned or {}).items()}
        image: Tensor = functional_call(self.synthesis, weights, (w_plus, noise))
        return image

    def fingerprint(self) -> str:
        """Return a digest of the config and of all weights and stored maps, in hexadecimal.

        Two generators with the same one give the same image for the same latent.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


class StyleMapping(nn.Module):
    """z to w, the mean of w, and w to w_plus.

    A back-end defines :meth:`to_w`; the rest is the same for all.

    Args:
        num_ws: Rows of w_plus.
        w_dim: Length of w.
        saves_mean: Whether ``w_avg`` is part of the state; a label's mapping has none.
    """

    w_avg: Tensor

    def __init__(self, num_ws: int, w_dim: int, saves_mean: bool = True) -> None:
        super().__init__()
        self.num_ws = num_ws
        self.register_buffer("w_avg", torch.zeros(w_dim), persistent=saves_mean)

    def to_w(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return ``w (N, w_dim)`` of ``z (N, z_dim)`` and ``label (N, label_dim)``."""
        raise NotImplementedError

    def broadcast(self, w: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Return ``w (N, w_dim)`` as ``w_plus (N, num_ws, w_dim)``, its first rows drawn towards the mean.

        Args:
            w: Latents.
            truncation: psi of the truncation trick, ``w_avg + psi (w - w_avg)`` (Karras et al. 2019, appendix
                B); 1 changes nothing.
            cutoff: Rows that are truncated; None truncates all.
        """
        w_plus = w[:, None].expand(-1, self.num_ws, -1)
        if truncation == 1:
            return w_plus
        rows = self.num_ws if cutoff is None else cutoff
        near = torch.lerp(self.w_avg.to(w.dtype), w_plus[:, :rows], truncation)
        return torch.cat([near, w_plus[:, rows:]], 1)

    def forward(
        self, z: Tensor, label: Tensor | None = None, truncation: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Return ``w_plus (N, num_ws, w_dim)`` of ``z (N, z_dim)``; see :meth:`broadcast`."""
        return self.broadcast(self.to_w(z, label), truncation, cutoff)


def normalise_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Return ``x (N, C)`` over the root of the mean of its squares (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def check_settings(whole: Mapping[str, int], label_dim: int, positive: Mapping[str, float | None]) -> None:
    """Check the arguments that networks with styles have in common.

    Args:
        whole: Numbers that are 1 or more, by their names.
        label_dim: 0 or more.
        positive: Numbers above 0, by their names; None where there is none.

    Raises:
        UserError: For the first that is not so.
    """
    for name, value in whole.items():
        if value < 1:
            raise UserError(f"{name}={value}: give at least 1")
    if label_dim < 0:
        raise UserError(f"label_dim={label_dim}: give the length of the label, or 0 for none")
    for name, number in positive.items():
        if number is not None and not number > 0:
            raise UserError(f"{name}={number}: give a positive number")


def check_label(label: Tensor | None, label_dim: int) -> Tensor | None:
    """Return ``label``, in float32 at least.

    Raises:
        UserError: If there must be none, or one of another length.
    """
    if label_dim == 0:
        if label is not None and label.shape[-1] > 0:
            raise UserError("label: this generator is unconditional and takes none")
        return None
    if label is None or label.shape[-1] != label_dim:
        got = "none" if label is None else f"one of length {label.shape[-1]}"
        raise UserError(f"label: this generator takes one of length {label_dim} per image, got {got}")
    return at_least_float32(label)


def check_taps(taps: Mapping[str, Tap] | None, names: Sequence[str]) -> Mapping[str, Tap]:
    """Return ``taps``, an empty mapping for None.

    Raises:
        UserError: If one names no layer.
    """
    unknown = [name for name in taps or {} if name not in names]
    if unknown:
        raise UserError(f"layer {unknown[0]}: this generator has {', '.join(names)}")
    return taps or {}


def check_w_plus(w_plus: Tensor, num_ws: int, w_dim: int) -> None:
    """Raise ``UserError`` unless ``w_plus`` is ``(N, num_ws, w_dim)``."""
    if w_plus.dim() != 3 or tuple(w_plus.shape[1:]) != (num_ws, w_dim):
        raise UserError(
            f"w_plus has shape {tuple(w_plus.shape)}: this generator takes (N, {num_ws}, {w_dim})"
        )


def noise_sources(noise: Noise, count: int) -> list[Tensor | str]:
    """Return where each of ``count`` noise inputs comes from.

    Raises:
        UserError: If ``noise`` is not one of the words, nor one map for each input.
    """
    if isinstance(noise, str):
        if noise not in ("const", "random", "none"):
            raise UserError(f"noise={noise}: give const, random, none, or one map for each noise input")
        return [noise] * count
    if len(noise) != count:
        raise UserError(f"noise: {len(noise)} maps given, this generator has {count} noise inputs")
    return list(noise)


def noise_of(source: Tensor | str, stored: Tensor, batch: int) -> Tensor | None:
    """Return the noise map of one input, ``(1 or N, 1, h, w)``; None for no noise.

    Raises:
        UserError: If a map has another shape than ``stored (h, w)``.
    """
    if isinstance(source, Tensor):
        if source.dim() != 4 or source.shape[1] != 1 or source.shape[-2:] != stored.shape:
            raise UserError(
                f"a noise map has shape {tuple(source.shape)}: this input takes "
                f"(1 or {batch}, 1, {stored.shape[0]}, {stored.shape[1]})"
            )
        return source
    if source == "random":
        return torch.randn(batch, 1, *stored.shape, device=stored.device, dtype=stored.dtype)
    return stored[None, None] if source == "const" else None


def build(config: Mapping[str, Any]) -> StyleGenerator:
    """Return a generator with fresh weights from the ``config`` of one.

    Raises:
        UserError: If the architecture is unknown or an argument impossible.
    """
    arguments = dict(config)
    name = arguments.pop("architecture", None)
    if name not in ARCHITECTURES:
        raise UserError(f"architecture={name}: choose one of {', '.join(ARCHITECTURES)}")
    module, class_name = ARCHITECTURES[name]
    try:
        generator: StyleGenerator = getattr(import_module(module), class_name)(**arguments)
    except TypeError as error:
        raise UserError(f"architecture={name}: {error}") from None
    return generator
