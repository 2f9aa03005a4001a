"""Distances between an image and its target, one number per image: L1, PSNR and SSIM.

Both images are uint8 in [0, 255], as they would be saved, or both float in [-1, 1], as a network makes them;
(N, C, H, W). Every function gives the same value for a float image and for its uint8 version, up to the
rounding to 8 bits. Nothing is downloaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of each image, in units of the [-1, 1] range.

    Args:
        image: (N, C, H, W), uint8 or float in [-1, 1].
        target: The same shape and kind.

    Returns:
        (N,), from 0 for equal images to 2 for black against white.

    >>> l1(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    tensor([2.])
    """
    image, target = _levels(image, target)
    return (image - target).abs().flatten(1).mean(1) / 127.5


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, in dB: ``10 log10(255^2 / MSE)``.

    The mean squared error is over all pixels and channels of one image; to average over a set, average these
    values.

    Args:
        image: (N, C, H, W), uint8 or float in [-1, 1].
        target: The same shape and kind.

    Returns:
        (N,); infinite for equal images.

    >>> psnr(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    tensor([0.])
    """
    image, target = _levels(image, target)
    return 10.0 * torch.log10(255.0**2 / (image - target).square().flatten(1).mean(1))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each image (Wang et al. 2004, equation 13).

    The published protocol: an 11x11 Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, L = 255,
    population (not sample) covariance, averaged over the positions where the whole window lies inside the
    image. The paper measures luminance; here each channel is measured and the channels are averaged. No
    resizing beforehand.

    Args:
        image: (N, C, H, W), uint8 or float in [-1, 1]; H and W at least 11.
        target: The same shape and kind.

    Returns:
        (N,), at most 1, which means equal.

    Raises:
        ValueError: If the images are smaller than the window.

    >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    tensor([1.])
    """
    image, target = _levels(image, target)
    if min(image.shape[-2:]) < SSIM_WINDOW_PX:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} px, these have "
            f"{image.shape[-2]}x{image.shape[-1]}"
        )
    num_images, channels = image.shape[:2]
    offsets = torch.arange(SSIM_WINDOW_PX, device=image.device, dtype=image.dtype) - SSIM_WINDOW_PX // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA_PX**2))
    window = window / window.sum()

    # Five images are blurred together: x, y, x^2, y^2, xy. Centring the levels on their mean changes no
    # covariance, and keeps the difference E[x^2] - E[x]^2 exact in single precision.
    centre = (image.mean((2, 3), keepdim=True) + target.mean((2, 3), keepdim=True)) / 2
    x, y = image - centre, target - centre
    maps = torch.cat([x, y, x * x, y * y, x * y]).reshape(-1, 1, *image.shape[-2:])
    maps = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = maps.reshape(5, num_images, channels, *maps.shape[-2:])

    var_x, var_y, cov = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    mean_x, mean_y = mean_x + centre, mean_y + centre
    c1, c2 = (SSIM_K1 * 255) ** 2, (SSIM_K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    similarity: Tensor = luminance * structure
    return similarity.flatten(1).mean(1)


def _levels(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both images as float levels in [0, 255]; float64 stays float64."""
    if image.shape != target.shape or image.ndim != 4:
        raise ValueError(
            f"images of shapes {tuple(image.shape)} and {tuple(target.shape)}: give two equal (N, C, H, W)"
        )
    if (image.dtype == torch.uint8) != (target.dtype == torch.uint8):
        raise ValueError(
            f"images of {image.dtype} and {target.dtype}: give both as uint8, or both as float in [-1, 1]"
        )
    if image.dtype == torch.uint8:
        return image.float(), target.float()
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return (image.to(dtype) + 1) * 127.5, (target.to(dtype) + 1) * 127.5
