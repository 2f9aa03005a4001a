"""A latent and all that its picture depends on, in one safetensors file.

Inversion and sampling write such files, editing reads them. Tensors: ``w_plus`` (L, w_dim); ``noise.0``,
``noise.1``, ... from coarse to fine, each (1, 1, h, w), where the noise is the latent's own; ``label``;
``tuned.<name>``, the generator's weights where they were tuned to this image. The header's
``i2i_lightning.latent`` holds the rest as JSON. Other floating types are read as float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from i2i_lightning.checkpoints.io import write_beside
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

HEADER = "i2i_lightning.latent"
SUFFIX = ".safetensors"


@dataclass
class Latent:
    """A point of W+ with its noise, and the generator it belongs to.

    Args:
        w_plus: (L, w_dim), float32.
        fingerprint: That of the generator; see ``StyleGenerator.fingerprint``.
        name: What it is of: an image's name, or ``seed 7``.
        noise: One map (1, 1, h, w) for each noise input; None for the generator's stored maps.
        label: (label_dim,), where the generator is conditional.
        tuned: The weights of the generator where they were tuned to this image, by name.
        generator: What to load the generator by, as it was given.
        settings: How the latent was found, as plain values.
        metrics: How well it does, by name.
    """

    w_plus: Tensor
    fingerprint: str
    name: str = ""
    noise: list[Tensor] | None = None
    label: Tensor | None = None
    tuned: dict[str, Tensor] | None = None
    generator: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def render(self, generator: StyleGenerator) -> Tensor:
        """Return the picture ``(1, channels, size_px, size_px)`` that ``generator`` makes of this latent.

        On one device it is the same bit for bit each time.

        Raises:
            UserError: If the latent belongs to another generator.
        """
        check_belongs(self, generator)
        place = generator.w_avg
        w_plus = self.w_plus[None].to(place)
        return generator.draw(w_plus, self.maps(place) or "const", self.tuned)

    def maps(self, like: Tensor) -> list[Tensor] | None:
        """Return its noise maps where ``like`` lies, in its precision; None for the generator's own."""
        return None if self.noise is None else [map_.to(like) for map_ in self.noise]


def save_latent(path: str | Path, latent: Latent) -> None:
    """Write ``latent`` to ``path``, whole or not at all.

    Raises:
        UserError: If it holds a number that is not finite, or the file cannot be written.
    """
    tensors = {"w_plus": latent.w_plus}
    tensors |= {f"noise.{index}": map_ for index, map_ in enumerate(latent.noise or [])}
    tensors |= {} if latent.label is None else {"label": latent.label}
    tensors |= {f"tuned.{name}": value for name, value in (latent.tuned or {}).items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    _check_finite(tensors, str(path))
    words = ("fingerprint", "name", "generator", "settings", "metrics")
    header = {HEADER: json.dumps({word: getattr(latent, word) for word in words})}
    write_beside(Path(path), save(tensors, metadata=header))


def load_latent(path: str | Path) -> Latent:
    """Return what :func:`save_latent` wrote, in float32.

    Raises:
        UserError: If the file is missing, damaged or something else, lacks a noise map between others, or
            holds a number that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such latent file")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0]})") from None
    words = _words(header, path)
    if "w_plus" not in tensors or tensors["w_plus"].dim() != 2:
        raise UserError(f"{path}: not a latent file: it has no w_plus of shape (rows, w_dim)")
    whole = [name for name, value in tensors.items() if not value.is_floating_point()]
    if whole:
        raise UserError(f"{path}: {whole[0]} is of type {tensors[whole[0]].dtype}; a latent's is float32")
    tensors = {name: value.float() for name, value in tensors.items()}
    _check_finite(tensors, str(path))
    numbers = range(sum(name.startswith("noise.") for name in tensors))
    missing = [f"noise.{number}" for number in numbers if f"noise.{number}" not in tensors]
    if missing:
        raise UserError(f"{path}: no {missing[0]}; its {len(numbers)} noise maps are numbered from 0 on")
    noise = [tensors[f"noise.{number}"] for number in numbers]
    tuned = {
        name.removeprefix("tuned."): value for name, value in tensors.items() if name.startswith("tuned.")
    }
    return Latent(
        w_plus=tensors["w_plus"],
        noise=noise or None,
        label=tensors.get("label"),
        tuned=tuned or None,
        **words,
    )


def load_metrics(path: Path) -> dict[str, float]:
    """Return the figures in a latent file's header: the rest of it may be gigabytes of tuned weights.

    Raises:
        UserError: If the file is damaged or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        raise UserError(f"{path}: not a latent file of i2i_lightning, or not a whole one") from None
    metrics: dict[str, float] = _words(header, path)["metrics"]
    return metrics


def _words(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        words = json.loads(header[HEADER])
        return {
            "fingerprint": str(words["fingerprint"]),
            "name": str(words["name"]),
            "generator": str(words["generator"]),
            "settings": dict(words["settings"]),
            "metrics": dict(words["metrics"]),
        }
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"{path}: not a latent file of i2i_lightning: its header has no {HEADER}; i2i-invert and "
            "i2i-sample write such files"
        ) from None


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{where}: {name} holds numbers that are not finite")


def check_belongs(latent: Latent, generator: StyleGenerator, fingerprint: str | None = None) -> None:
    """Raise ``UserError`` unless ``latent`` was made for ``generator``, and all of it fits.

    Args:
        latent: What is to be drawn.
        generator: What is to draw it.
        fingerprint: The generator's, where it is at hand: it takes all weights to compute.
    """
    shape = (generator.num_ws, generator.w_dim)
    if tuple(latent.w_plus.shape) != shape:
        raise UserError(
            f"latent {latent.name}: w_plus has shape {tuple(latent.w_plus.shape)}, this generator takes "
            f"{shape}"
        )
    fingerprint = generator.fingerprint() if fingerprint is None else fingerprint
    if latent.fingerprint != fingerprint:
        made_with = f", made with {latent.generator}" if latent.generator else ""
        raise UserError(
            f"latent {latent.name}: belongs to another generator (fingerprint {latent.fingerprint[:12]}"
            f"{made_with}); this one's is {fingerprint[:12]}, and latents mean nothing across generators"
        )
    if latent.noise is not None:
        found = [tuple(map_.shape) for map_ in latent.noise]
        wanted = [(1, 1, *each) for each in generator.noise_shapes]
        if found != wanted:
            raise UserError(
                f"latent {latent.name}: its noise maps are {found}, this generator takes {wanted}"
            )
    if latent.label is not None and tuple(latent.label.shape) != (generator.label_dim,):
        takes = f"({generator.label_dim},)" if generator.label_dim else "none"
        raise UserError(
            f"latent {latent.name}: its label has shape {tuple(latent.label.shape)}, this generator takes "
            f"{takes}"
        )
    own = {f"synthesis.{name}": value.shape for name, value in generator.synthesis.named_parameters()}
    for name, value in (latent.tuned or {}).items():
        if value.shape != own.get(name):
            takes = f"takes {tuple(own[name])}" if name in own else "has no such weight"
            raise UserError(
                f"latent {latent.name}: tuned {name} has shape {tuple(value.shape)}, this generator {takes}"
            )
