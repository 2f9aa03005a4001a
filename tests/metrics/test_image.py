from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter, laplace

import i2i_lightning.metrics.image as image_metrics
from i2i_lightning.metrics.image import (
    MS_SSIM_WEIGHTS,
    l1,
    ms_ssim,
    ms_ssim_scales,
    ms_ssim_weights,
    psnr,
    sharpness,
    ssim,
)


def pair(kind: str, px: tuple[int, int] = (23, 31), n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (n, 3, *px)).astype(np.float64)
    target = (target + np.roll(target, 1, -1) + np.roll(target, 1, -2)) / 3  # a little structure
    image = np.clip(target + rng.normal(0, 20, target.shape), 0, 255)
    image, target = (torch.from_numpy(x.round()) for x in (image, target))
    if kind == "uint8":
        return image.to(torch.uint8), target.to(torch.uint8)
    return image / 127.5 - 1, target / 127.5 - 1


def reference_maps(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """SSIM and its contrast and structure, of one channel: a window in 2-D, applied by scipy, in float64."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        return correlate(values, window)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * cov + c2) / (vx + vy + c2)
    return float(np.mean((2 * mx * my + c1) / (mx**2 + my**2 + c1) * structure)), float(np.mean(structure))


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004 on one channel."""
    return reference_maps(x, y)[0]


def reference_ms_ssim(x: np.ndarray, y: np.ndarray, scales: int) -> float:
    """Wang et al. 2003 on one channel: luminance at the last scale alone."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    if scales < 5:
        weights = weights / weights.sum()
    product = 1.0
    for scale in range(scales):
        if scale:
            x, y = (
                a[: a.shape[0] // 2 * 2, : a.shape[1] // 2 * 2]
                .reshape(a.shape[0] // 2, 2, a.shape[1] // 2, 2)
                .mean((1, 3))
                for a in (x, y)
            )
        similarity, structure = reference_maps(x, y)
        product *= (similarity if scale == scales - 1 else structure) ** weights[scale]
    return float(product)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_metrics_equal_an_independent_reference(kind: str) -> None:
    image, target = pair(kind)
    x, y = (
        t.numpy().astype(np.float64) if kind == "uint8" else (t.numpy() + 1) * 127.5 for t in (image, target)
    )
    for i in range(len(x)):
        expected = np.mean([reference_ssim(x[i, c], y[i, c]) for c in range(3)])
        assert ssim(image, target)[i] == pytest.approx(expected, abs=2e-6)
        mse = np.mean((x[i] - y[i]) ** 2)
        assert psnr(image, target)[i] == pytest.approx(20 * np.log10(255) - 10 * np.log10(mse), rel=1e-6)
        assert l1(image, target)[i] == pytest.approx(np.abs(x[i] - y[i]).mean() * 2 / 255, rel=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize(("px", "scales"), [((176, 181), 5), ((95, 175), 4), ((64, 64), 3), ((11, 40), 1)])
def test_ms_ssim_equals_an_independent_reference(kind: str, px: tuple[int, int], scales: int) -> None:
    image, target = pair(kind, px, n=2)
    assert ms_ssim_scales(*px) == scales
    x, y = (
        t.numpy().astype(np.float64) if kind == "uint8" else (t.numpy() + 1) * 127.5 for t in (image, target)
    )
    values = ms_ssim(image, target)
    for i in range(len(x)):
        expected = np.mean([reference_ms_ssim(x[i, c], y[i, c], scales) for c in range(3)])
        assert values[i] == pytest.approx(expected, abs=2e-6)
    if scales == 1:
        torch.testing.assert_close(values, ssim(image, target))


def test_ms_ssim_of_torchmetrics_is_nearly_the_same() -> None:
    # It mixes the channels before the product, and averages luminance over positions where the window leaves
    # the image, which it mirrors there: a few 1e-4 on this small image of one channel.
    image = pytest.importorskip("torchmetrics.functional.image")
    x, y = (t[:, :1].double() for t in pair("float", (192, 200), n=2))
    theirs = [
        image.multiscale_structural_similarity_index_measure(
            (x[i : i + 1] + 1) * 127.5, (y[i : i + 1] + 1) * 127.5, data_range=255.0, betas=MS_SSIM_WEIGHTS
        )
        for i in range(2)
    ]
    torch.testing.assert_close(ms_ssim(x, y), torch.stack(theirs), atol=5e-4, rtol=0)


def test_ms_ssim_weights_of_fewer_scales_sum_to_one() -> None:
    assert ms_ssim_weights(5) == MS_SSIM_WEIGHTS
    for scales in range(1, 5):
        assert sum(ms_ssim_weights(scales)) == pytest.approx(1)


def test_an_inverted_image_has_no_complex_similarity() -> None:
    image, _ = pair("uint8", (64, 64))
    assert ms_ssim(image, 255 - image).tolist() == [0, 0, 0]


def test_float_and_uint8_agree() -> None:
    for metric in (l1, psnr, ssim, ms_ssim, sharpness):
        torch.testing.assert_close(
            metric(*pair("uint8")), metric(*pair("float")).float(), rtol=1e-5, atol=1e-6
        )


def test_equal_images() -> None:
    image, _ = pair("uint8")
    assert l1(image, image).tolist() == [0, 0, 0]
    assert torch.isinf(psnr(image, image)).all()
    torch.testing.assert_close(ssim(image, image), torch.ones(3))
    torch.testing.assert_close(ms_ssim(image, image), torch.ones(3))
    assert sharpness(image, image).tolist() == [1, 1, 1]


def test_sharpness_equals_an_independent_reference() -> None:
    image, target = pair("uint8")

    def rms(x: torch.Tensor) -> float:
        inside = [laplace(channel.double().numpy())[1:-1, 1:-1] for channel in x]
        return float(np.sqrt(np.mean(np.square(inside))))

    expected = [rms(x) / rms(y) for x, y in zip(image, target, strict=True)]
    assert sharpness(image, target).tolist() == pytest.approx(expected, rel=1e-5)


def test_sharpness_falls_with_blur_and_rises_with_noise() -> None:
    rng = np.random.default_rng(0)
    edges = np.where(rng.random((1, 1, 8, 8)) < 0.5, 40.0, 215.0).repeat(8, 2).repeat(8, 3)

    def levels(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x / 127.5 - 1)

    values = [
        float(sharpness(levels(gaussian_filter(edges, (0, 0, sigma, sigma))), levels(edges)))
        for sigma in (2.0, 1.0, 0.5, 0.0)
    ]
    assert values == sorted(values)
    assert values[0] < 0.2  # though the height of every edge, and so the mean gradient, is nearly what it was
    assert values[-1] == pytest.approx(1)
    noisy = edges + rng.normal(0, 20, edges.shape)
    assert float(sharpness(levels(noisy), levels(edges))) > 1.2
    # A flat target divides by nothing.
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert sharpness(flat, flat).tolist() == [1]
    with pytest.raises(ValueError, match="3x3"):
        sharpness(flat[..., :2], flat[..., :2])


def test_single_precision_holds_on_bright_flat_images() -> None:
    # E[x^2] - E[x]^2 of levels near 255 cancels; the centred computation must not go astray.
    rng = np.random.default_rng(1)
    x, y = (250 + rng.integers(0, 3, (16, 16)).astype(np.float64) for _ in range(2))
    images = [torch.from_numpy(a)[None, None].to(torch.uint8) for a in (x, y)]
    assert ssim(*images)[0] == pytest.approx(reference_ssim(x, y), abs=1e-5)


def test_errors_name_what_is_wrong() -> None:
    small = torch.zeros(1, 3, 10, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match="10x40"):
        ssim(small, small)
    with pytest.raises(ValueError, match="MS-SSIM needs images of at least 11x11 px, these have 10x40"):
        ms_ssim(small, small)
    with pytest.raises(ValueError, match="uint8"):
        l1(small, small.float())
    with pytest.raises(ValueError, match="shapes"):
        psnr(small, small[:, :1])


def test_doctests() -> None:
    assert doctest.testmod(image_metrics).failed == 0
