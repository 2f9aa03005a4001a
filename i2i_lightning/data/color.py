"""CIE L*a*b* and back: the space in which a colour is predicted from its lightness."""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB to CIE XYZ (IEC 61966-2-1), rows divided by the D65 white (0.95047, 1, 1.08883).
_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)
_EDGE = 6 / 29

LIGHTNESS_SCALE, CHROMA_SCALE = 50.0, 110.0
"""L / 50 - 1 and (a, b) / 110 are what networks see of a picture whose colour they predict."""


def _mixed(image: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix, image)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1], ``(N, 3, H, W)``, to CIE L*a*b* (D65): L in [0, 100], a, b in [-108, 99]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = _mixed(linear, rgb.new_tensor(_TO_XYZ))
    f = torch.where(xyz > _EDGE**3, xyz.clamp(min=_EDGE**3) ** (1 / 3), xyz / (3 * _EDGE**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIE L*a*b* (D65), ``(N, 3, H, W)``, to sRGB, clamped to [0, 1] where it lies outside."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4 / 29))
    linear = _mixed(xyz, torch.linalg.inv(lab.new_tensor(_TO_XYZ))).clamp(0, 1)
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    )


def lightness_and_chroma_to_rgb(lightness: Tensor, chroma: Tensor) -> Tensor:
    """Return the picture that ``lightness`` and ``chroma`` make together.

    Args:
        lightness: L / 50 - 1, float ``(N, 1, H, W)`` in [-1, 1].
        chroma: (a, b) / 110, float ``(N, 2, H, W)``; values outside [-1, 1] are clamped.

    Returns:
        RGB, uint8 ``(N, 3, H, W)``.
    """
    lab = torch.cat(
        [(lightness.float().clamp(-1, 1) + 1) * LIGHTNESS_SCALE, chroma.float().clamp(-1, 1) * CHROMA_SCALE],
        1,
    )
    return (lab_to_rgb(lab) * 255).round().to(torch.uint8)
