"""An image beside its target, one number per image: L1, PSNR, SSIM, MS-SSIM and sharpness.

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
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, the finest first (Wang et al. 2003, section 3.2)."""


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
    similarity, _ = _similarity(*_levels(image, target), "SSIM")
    return similarity.mean(1)


def ms_ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of each image (Wang, Simoncelli and Bovik 2003).

    ``l_M^w_M prod_j cs_j^w_j``, equation 7: contrast and structure at every scale, luminance at the coarsest
    alone, each averaged over the image first. From scale to scale the image is averaged over 2x2 pixels (an
    odd last row or column is left out). The rest is as in :func:`ssim`: window, constants, each channel
    measured, the channels averaged. A negative mean of contrast and structure, which has no real power,
    counts as 0.

    Five scales need 176 px at the coarsest's 11 px window. Smaller images take the *variant for small
    images*: the first :func:`ms_ssim_scales` scales, their exponents divided by their sum.

    Args:
        image: (N, C, H, W), uint8 or float in [-1, 1]; H and W at least 11.
        target: The same shape and kind.

    Returns:
        (N,), in [0, 1]; 1 means equal.

    Raises:
        ValueError: If the images are smaller than the window.

    >>> ms_ssim(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    tensor([1.])
    """
    image, target = _levels(image, target)
    scales = ms_ssim_scales(image.shape[-2], image.shape[-1])
    weights = ms_ssim_weights(scales)
    product = torch.ones((), dtype=image.dtype, device=image.device)
    for scale, weight in enumerate(weights):
        if scale > 0:
            image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
        similarity, structure = _similarity(image, target, "MS-SSIM")
        factor = similarity if scale == scales - 1 else structure
        product = product * factor.clamp(min=0) ** weight
    return product.mean(1)


def ms_ssim_scales(height_px: int, width_px: int) -> int:
    """Return how many scales of MS-SSIM an image has room for: 5 from 176 px on the shorter side, then less.

    Raises:
        ValueError: If not even one window lies inside.

    >>> [ms_ssim_scales(px, 512) for px in (256, 176, 175, 128, 64, 11)]
    [5, 5, 4, 4, 3, 1]
    """
    side_px = min(height_px, width_px)
    _check_window(height_px, width_px, "MS-SSIM")
    return max(n for n in range(1, len(MS_SSIM_WEIGHTS) + 1) if side_px >> (n - 1) >= SSIM_WINDOW_PX)


def ms_ssim_weights(scales: int) -> tuple[float, ...]:
    """Return the exponents of that many scales, the finest first; those of fewer than five sum to 1.

    >>> [round(weight, 4) for weight in ms_ssim_weights(3)]
    [0.0711, 0.453, 0.476]
    """
    weights = MS_SSIM_WEIGHTS[:scales]
    # The five published ones sum to 1.0001, and are taken as they are.
    total = sum(weights) if scales < len(MS_SSIM_WEIGHTS) else 1.0
    return tuple(weight / total for weight in weights)


def sharpness(image: Tensor, target: Tensor) -> Tensor:
    """Return how sharp each image is as a multiple of its target: ``rms(Laplacian(image)) / rms(...target)``.

    The Laplacian is that of the four neighbours, ``x_up + x_down + x_left + x_right - 4 x``, inside of each
    channel; its root mean square is over all channels and positions whose neighbours lie inside the image.
    The energy of the Laplacian is a classical measure of focus (Subbarao, Choi and Nikzad 1993): it falls
    where an edge is spread over more pixels, which the mean gradient does not. An output as sharp as its
    target has 1, a blurred one less, a noisy one more. No structure is compared: a sharp picture of something
    else has 1 too, so read it beside a metric that does.

    Both roots count as at least one level of 255, so that a flat target does not divide by 0.

    Args:
        image: (N, C, H, W), uint8 or float in [-1, 1]; H and W at least 3.
        target: The same shape and kind.

    Returns:
        (N,), positive.

    Raises:
        ValueError: If the images are smaller than 3 px.

    >>> board = torch.tensor([[1.0, -1.0] * 2, [-1.0, 1.0] * 2] * 2)[None, None]
    >>> sharpness(board / 4, board)
    tensor([0.2500])
    """
    image, target = _levels(image, target)
    if min(image.shape[-2:]) < 3:
        raise ValueError(f"sharpness needs images of at least 3x3 px, these have {tuple(image.shape[-2:])}")
    return _laplacian_rms(image) / _laplacian_rms(target)


def _laplacian_rms(levels: Tensor) -> Tensor:
    """Return the root mean square of the Laplacian of each image, at least 1, ``(N,)``."""
    inside = levels[..., 1:-1, 1:-1]
    around = levels[..., :-2, 1:-1] + levels[..., 2:, 1:-1] + levels[..., 1:-1, :-2] + levels[..., 1:-1, 2:]
    return (around - 4 * inside).square().flatten(1).mean(1).sqrt().clamp(min=1.0)


def _similarity(image: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return SSIM of levels in [0, 255], and its factor of contrast and structure: means ``(N, C)``."""
    num_images, channels, height_px, width_px = image.shape
    _check_window(height_px, width_px, name)
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
    structure: Tensor = (2 * cov + c2) / (var_x + var_y + c2)
    similarity: Tensor = luminance * structure
    return similarity.mean((2, 3)), structure.mean((2, 3))


def _check_window(height_px: int, width_px: int, name: str) -> None:
    if min(height_px, width_px) < SSIM_WINDOW_PX:
        raise ValueError(
            f"{name} needs images of at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} px, these have "
            f"{height_px}x{width_px}"
        )


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
