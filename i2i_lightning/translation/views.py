"""Parts of an image in network space, continued beyond its edges by reflection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.data.transforms import scale_to_network
from i2i_lightning.translation.formats import to_network
from i2i_lightning.translation.tiling import Corner
from i2i_lightning.types import ImageFormat


class View:
    """An image of which parts are read, continued beyond its edges by reflection.

    Args:
        pixels: Pixels ``(C, H, W)`` or ids ``(H, W)``; or network space, if there is no format.
        format: What the pixels are; None if they are in network space.
        device: Where parts are brought.
    """

    def __init__(self, pixels: Tensor, format: ImageFormat | None, device: torch.device) -> None:
        self.pixels, self.format, self.device = pixels, format, device
        self.size = pixels.shape[-2], pixels.shape[-1]

    def pixels_of(self, corner: Corner, size: tuple[int, int]) -> Tensor:
        """Return the pixels at ``corner`` of ``size``, as they are stored."""
        (top, left), (height, width) = corner, size
        part = self.pixels[..., top : top + height, left : left + width]
        if part.shape[-2:] == torch.Size(size):
            return part
        # No kernel gathers uint16, but its bits are an int16.
        whole = self.pixels.view(torch.int16) if self.pixels.dtype == torch.uint16 else self.pixels
        for axis, start, count in ((-2, top, height), (-1, left, width)):
            whole = whole.index_select(axis, _reflected(start, count, self.size[axis], whole.device))
        return whole.view(self.pixels.dtype)

    def read(self, corner: Corner, size: tuple[int, int]) -> Tensor:
        """Return the part at ``corner`` of ``size`` in network space, float ``(C', h, w)``."""
        pixels = self.pixels_of(corner, size).to(self.device)
        return pixels.float() if self.format is None else to_network(pixels[None], self.format)[0]

    def reduced(self, height: int, width: int) -> Tensor:
        """Return the image in network space at a smaller size; ids take the nearest pixel."""
        if self.pixels.dim() == 2:
            rows, columns = (
                ((torch.arange(to) + 0.5) * size / to).long().clamp(max=size - 1).to(self.pixels.device)
                for to, size in ((height, self.size[0]), (width, self.size[1]))
            )
            small = self.pixels.to(torch.int32)[rows][:, columns]
        else:
            # A channel at a time, so that no second copy of the whole image is held as floats.
            planes = [
                F.interpolate(
                    scale_to_network(plane if plane.is_cuda else plane.cpu())[None, None],
                    (height, width),
                    mode="bicubic",
                    antialias=True,
                ).clamp(-1, 1)[0]
                for plane in self.pixels
            ]
            small = torch.cat(planes)
        small = small.to(self.device)
        return small if self.format is None else to_network(small[None], self.format)[0]


def stacked(pixels: Sequence[Tensor], format: ImageFormat, device: torch.device) -> Tensor:
    """Return pixels of one size in network space on ``device``; they travel there as they are stored."""
    if len({one.dtype for one in pixels}) == 1 and len({one.shape for one in pixels}) == 1:
        stored = [one.view(torch.int16) if one.dtype == torch.uint16 else one for one in pixels]
        return to_network(torch.stack(stored).view(pixels[0].dtype).to(device), format)
    return torch.cat([to_network(one[None].to(device), format) for one in pixels])


def _reflected(start: int, count: int, length: int, device: torch.device) -> Tensor:
    """Return indices start..start+count-1 into an axis that is continued by reflection, again and again.

    The outermost pixel is not repeated, but for an axis of one pixel, which has nothing else.
    """
    period = max(2 * (length - 1), 1)
    place = torch.arange(start, start + count, device=device) % period
    return torch.minimum(place, period - place) if length > 1 else torch.zeros_like(place)
