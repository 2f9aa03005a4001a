"""How far generated toy faces are from real ones as a set, by what the judge sees in them; needs no download.

FID and KID compare sets by Inception's features, which are the user's to fetch. On ToyFaces the judge, which
is part of the package, can stand in for Inception: the vector that it reads the parameters off says where
the parts of the face are, what is found at each of its points, and how the texture is. It knows no other
pictures than toy faces, so the distance means nothing on other data, and it compares with no KID.

Each feature is standardised over the judge's training pictures and cut off at 3 deviations: a picture that is
nothing like a face drives some features so far out that the cube of the kernel would speak of it alone. For
the size of things, 200 photos of the val split at 32 px, against as many of the test split: -0.001; with a
little noise (deviation 0.1), 0.12; blurred by a factor of 2, 0.21; each averaged with another, 0.09; 50
different ones alone, 0.05; 10, 0.27; one, 3.2; cartoons, 0.43; noise alone, 14; nothing, 21. One subset of 50
deviates by 0.02.
"""

from __future__ import annotations

import torch
from torch import Tensor

from i2i_lightning.metrics.judge import JUDGE_PX, JUDGE_VERSION, Judge, load_judge, to_judge
from i2i_lightning.metrics.kernel import kernel_distance

CHUNK = 64
"""Pictures read at once."""
BOUND = 3.0
"""Deviations that a feature may be from its mean."""


class JudgeFeatures:
    """The judge's last hidden features of pictures, standardised over its training pictures, cut off at 3.

    Args:
        device: Where the judge is.
        judge: Who reads; None takes the one that is shipped.
    """

    def __init__(self, device: torch.device | str = "cpu", judge: Judge | None = None) -> None:
        self.judge = (load_judge(device) if judge is None else judge).to(device)
        self.device = torch.device(device)

    @property
    def width(self) -> int:
        """The number of features of a picture."""
        return int(self.judge.network.normalise.num_features)

    @property
    def protocol(self) -> str:
        """What the features are, in words."""
        return (
            f"judge_v{JUDGE_VERSION} of ToyFaces, the {self.width} features that it reads parameters off, "
            f"standardised, cut off at {BOUND:g}; {JUDGE_PX} px, antialiased bilinear"
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of pictures, float32 ``(N, D)`` on the judge's device.

        Args:
            images: RGB ``(N, 3, H, W)``, uint8 or float in [-1, 1].
        """
        norm = self.judge.network.normalise
        assert norm.running_mean is not None
        assert norm.running_var is not None
        parts = [torch.empty(0, self.width, device=self.device)]
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(images), CHUNK):
                chunk = images[start : start + CHUNK].to(self.device)
                summary = self.judge.network.look(to_judge(chunk))[2]
                standard = (summary - norm.running_mean) * (norm.running_var + norm.eps).rsqrt()
                parts.append(standard.clamp(-BOUND, BOUND))
        return torch.cat(parts)


def judge_distance(
    images_a: Tensor,
    images_b: Tensor,
    subset_size: int = 50,
    num_subsets: int = 100,
    seed: int = 0,
    features: JudgeFeatures | None = None,
) -> tuple[float, float]:
    """Return the kernel distance of two sets of toy faces, and its deviation over subsets.

    The cubic polynomial kernel's unbiased squared maximum mean discrepancy, as KID takes it (Binkowski et al.
    2018, section 4), on the judge's features; see
    :func:`~i2i_lightning.metrics.kernel.kernel_distance`. Sets that are alike have about 0, and may have a
    little less.

    Args:
        images_a: RGB ``(N, 3, H, W)``, uint8 or float in [-1, 1], at least 2 of them.
        images_b: ``(M, 3, H', W')``.
        subset_size: Pictures drawn from each set.
        num_subsets: How many times.
        seed: Of the draw.
        features: Makes the features; None takes the shipped judge, on the CPU.

    Returns:
        Mean, and standard deviation over the subsets.
    """
    read = JudgeFeatures() if features is None else features
    return kernel_distance(read(images_a), read(images_b), subset_size, num_subsets, seed)
