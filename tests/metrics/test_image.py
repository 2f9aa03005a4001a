from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

import i2i_lightning.metrics.image as image_metrics
from i2i_lightning.metrics.image import l1, psnr, ssim


def pair(kind: str, px: tuple[int, int] = (23, 31), n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (n, 3, *px)).astype(np.float64)
    target = (target + np.roll(target, 1, -1) + np.roll(target, 1, -2)) / 3  # a little structure
    image = np.clip(target + rng.normal(0, 20, target.shape), 0, 255)
    image, target = (torch.from_numpy(x.round()) for x in (image, target))
    if kind == "uint8":
        return image.to(torch.uint8), target.to(torch.uint8)
    return image / 127.5 - 1, target / 127.5 - 1


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004 on one channel: a two-dimensional window, applied by scipy, in float64."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        return correlate(values, window)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


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


def test_float_and_uint8_agree() -> None:
    for metric in (l1, psnr, ssim):
        torch.testing.assert_close(
            metric(*pair("uint8")), metric(*pair("float")).float(), rtol=1e-5, atol=1e-6
        )


def test_equal_images() -> None:
    image, _ = pair("uint8")
    assert l1(image, image).tolist() == [0, 0, 0]
    assert torch.isinf(psnr(image, image)).all()
    torch.testing.assert_close(ssim(image, image), torch.ones(3))


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
    with pytest.raises(ValueError, match="uint8"):
        l1(small, small.float())
    with pytest.raises(ValueError, match="shapes"):
        psnr(small, small[:, :1])


def test_doctests() -> None:
    assert doctest.testmod(image_metrics).failed == 0
