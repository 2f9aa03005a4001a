"""Whether two pictures show the same person, as a face recogniser sees it.

The identity term of pSp (Richardson et al. 2021, arXiv 2008.00951, equation 4), on features of ArcFace (Deng
et al. 2019, arXiv 1801.07698).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.losses.reconstruction import at_least_float32
from i2i_lightning.types import UserError

Box = tuple[int, int, int, int]
"""Top, bottom, left and right."""
ALIGNED_PX = 256
"""Side that crops are measured at."""
CROP: Box = (35, 223, 32, 220)
"""The face in a picture that is aligned as FFHQ's are, as pSp's code cuts it out."""


def identity_loss(features: Tensor, target_features: Tensor) -> Tensor:
    """Return ``1 - <R(x), R(G(w))>`` of each image (Richardson et al. 2021, equation 4).

    Args:
        features: Unit vectors, ``(N, D)``.
        target_features: The same, of N images or of one.

    Returns:
        ``(N,)`` in [0, 2] but for rounding, in float32 at least; 0 for equal features.
    """
    return 1 - (at_least_float32(features) * at_least_float32(target_features)).sum(1)


class Identity(nn.Module):
    """A distance of identities, whose targets' features can be kept.

    ``identity_loss(features(images), features(targets))``; grey images count as RGB of three equal channels.
    The recogniser is fixed and stays in evaluation mode; gradients flow to the images. It computes in the
    precision of its weights, under autocast too.

    Args:
        network: Maps RGB faces ``(N, 3, face_px, face_px)`` in [-1, 1] to unit vectors ``(N, D)``.
        face_px: Side of the faces that it takes.
        source: What it is and where its weights come from, for records.
        crop: Top, bottom, left and right of what is looked at, in pixels of the image at 256 px; None for
            the whole image.

    Attributes:
        source: As given.
        protocol: What the numbers are, in one line.

    Raises:
        UserError: If the crop is empty or leaves the image.
    """

    def __init__(self, network: nn.Module, face_px: int, source: str, crop: Box | None = CROP) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()
        self.face_px = face_px
        self.source = source
        self.crop = None if crop is None else _checked(crop)
        seen = "whole images" if crop is None else f"[{', '.join(map(str, crop))}] of {ALIGNED_PX} px"
        self.protocol = f"{source}, {seen}"

    def train(self, mode: bool = True) -> Identity:
        """Stay in evaluation mode: batch norms would make the images of a batch depend on each other."""
        return super().train(False)

    def faces(self, images: Tensor) -> Tensor:
        """Return what the recogniser sees of ``images (N, 3 or 1, H, W)``, ``(N, 3, face_px, face_px)``.

        A crop is cut at 256 px, which images of other sizes are averaged down to, or repeated up to, as pSp
        and its followers do.
        """
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.crop is not None:
            top, bottom, left, right = self.crop
            images = F.adaptive_avg_pool2d(images, ALIGNED_PX)[:, :, top:bottom, left:right]
        return F.adaptive_avg_pool2d(images, self.face_px)

    def features(self, images: Tensor) -> Tensor:
        """Return unit vectors ``(N, D)``, in float32 at least.

        Args:
            images: Float ``(N, 3 or 1, H, W)`` in [-1, 1].
        """
        with torch.autocast(images.device.type, enabled=False):
            faces = self.faces(images.to(next(self.network.parameters()).dtype))
            return at_least_float32(self.network(faces))

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the distance of each pair, ``(N,)``."""
        return identity_loss(self.features(images), self.features(targets))


def _checked(crop: Box) -> Box:
    top, bottom, left, right = crop
    if not (0 <= top < bottom <= ALIGNED_PX and 0 <= left < right <= ALIGNED_PX):
        raise UserError(
            f"crop={list(crop)}: top, bottom, left, right within 0 to {ALIGNED_PX}, and not empty; or null"
        )
    return top, bottom, left, right
