"""Transforms of images, each with a probability (ADA: Karras et al. 2020b, arXiv 2006.06676).

The transforms, their order and their strengths are those of the paper's appendix B that it found most useful
("bgc"): pixel blitting, general geometry, colour. Its image-space filters and corruptions, which it found of
little use, are not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.losses.reconstruction import at_least_float32
from i2i_lightning.types import UserError

BLITS = ("flip", "rotate_90", "translate_whole")
GEOMETRY = ("scale", "rotate", "stretch", "translate")
COLOUR = ("brightness", "contrast", "luma_flip", "hue", "saturation")
TRANSFORMS = BLITS + GEOMETRY + COLOUR
COLOUR_CHANNELS = (1, 3)
"""Channels of the images that :data:`COLOUR` can change."""

# The low-pass filter of the symlet with six vanishing moments: orthogonal, so that doubling an image and
# halving it again gives the same image.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
# Where a filtered sample lies: the filter is not quite symmetric, and with its vanishing moments a ramp comes
# out as the same ramp, later by its centre of mass.
_CENTRE = sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6)
_MARGIN_PX = 6  # of reflected pixels, for the filter's taps
_SMALLEST_PX = _MARGIN_PX + 1


def check_transforms(names: Sequence[str], key: str) -> tuple[str, ...]:
    """Return ``names`` as a tuple.

    Raises:
        UserError: If there is no such transform; ``key`` is named in it.
    """
    unknown = [name for name in names if name not in TRANSFORMS]
    if unknown:
        raise UserError(f"{key}: no transform {', '.join(unknown)}; there is {', '.join(TRANSFORMS)}")
    return tuple(names)


def augment_adaptively(images: Tensor, p: float | Tensor, names: Sequence[str] = TRANSFORMS) -> Tensor:
    """Return ``images`` with every transform applied to every image with probability ``p`` (appendix B).

    Differentiable in the images, twice too (R1 passes through it), outside autocast and in float32 at least.
    An image that no transform has hit is returned bit for bit; one hit by blits alone is moved by whole
    pixels, exactly where it is square. For the rest, all moves of an image are one affine map and it is
    resampled once, see :func:`resample`. What comes in from outside is the image's reflection.

    Args:
        images: Float (N, C, H, W) in [-1, 1], at least 7 px a side. Colours take 3 channels, or 1, where they
            act as on a grey picture; the other transforms take any number.
        p: The probability, in [0, 1].
        names: Transforms to use, any of :data:`TRANSFORMS`; the order is always that of the paper.

    Returns:
        The same shape; colours may leave [-1, 1].

    Raises:
        ValueError: If the images are too small, or have channels that no colour is made of.
    """
    if images.ndim != 4 or min(images.shape[2:]) < _SMALLEST_PX:
        raise ValueError(
            f"adaptive augmentation takes (N, C, H, W) of at least {_SMALLEST_PX} px a side, these are"
            f" {tuple(images.shape)}"
        )
    if any(name in names for name in COLOUR) and images.shape[1] not in COLOUR_CHANNELS:
        raise ValueError(
            f"transforms of colour take (N, 1 or 3, H, W), these are {tuple(images.shape)}: leave out "
            + ", ".join(name for name in names if name in COLOUR)
        )
    with torch.autocast(images.device.type, enabled=False):
        images = at_least_float32(images)
        p = torch.as_tensor(p, dtype=images.dtype, device=images.device)
        if p.device.type == "cpu" and p == 0:  # on an accelerator the look would cost more than the work
            return images
        if any(name in names for name in BLITS + GEOMETRY):
            images = _move(images, p, names)
        if any(name in names for name in COLOUR):
            images = _recolour(images, p, names)
        return images


# ---------------------------------------------------------------------------------------------------- drawing


def _chosen(like: Tensor, p: Tensor, value: Tensor, neutral: float) -> Tensor:
    """Return ``value (N,)`` with probability p each, else ``neutral``."""
    return torch.where(torch.rand_like(like) < p, value, torch.full_like(like, neutral))


def draw_blits(like: Tensor, p: Tensor, names: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Return maps that move whole pixels, ``(N, 3, 3)``, from where a pixel ends up to where it came from.

    Coordinates are (x, y) in pixels from the middle. Flip: half of those chosen. Quarter turns: 0 to 3.
    Translation: U(-1/8, 1/8) of the sides, rounded to pixels.

    Args:
        like: ``(N,)``, for number, type and device.
        p: The probability.
        names: Which of :data:`BLITS` to draw; others are passed over.
        size: Height and width.
    """
    height, width = size
    source = _scaling(torch.ones_like(like), torch.ones_like(like))
    if "flip" in names:
        mirrored = 1 - 2 * torch.randint_like(like, 2)
        mirrored = _chosen(like, p, mirrored, 1)
        source = _after(source, _scaling(mirrored, torch.ones_like(like)))
    if "rotate_90" in names:
        turns = _chosen(like, p, torch.randint_like(like, 4), 0)
        # Whole numbers, where the cosine of pi / 2 would not be.
        sines = like.new_tensor([0, 1, 0, -1, 0])
        turns = turns.long()
        source = _after(source, _rotation_by(sines[turns + 1], sines[turns]))
    if "translate_whole" in names:
        share = torch.rand(2, *like.shape, dtype=like.dtype, device=like.device) / 4 - 1 / 8
        hit = _chosen(like, p, torch.ones_like(like), 0)
        source = _after(
            source, _translation((share[0] * width).round() * hit, (share[1] * height).round() * hit)
        )
    return source


def draw_geometry(
    like: Tensor, p: Tensor, names: Sequence[str], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return maps that need resampling, as :func:`draw_blits` does, and which of them do anything, ``(N,)``.

    Scale: lognormal, a factor 2^(0.2 N(0, 1)). Stretch: one side by the same distribution, the other by the
    inverse. Rotation: U(-pi, pi), before the stretch, after it, or both, each with ``1 - sqrt(1 - p)``, so
    that an image is rotated with probability p. Translation: N(0, 1/8) of the sides.
    """
    height, width = size
    one = torch.ones_like(like)
    source, hit = _scaling(one, one), torch.zeros_like(like, dtype=torch.bool)
    p_rotate = 1 - (1 - p).sqrt()
    if "scale" in names:
        factor = _chosen(like, p, torch.exp2(0.2 * torch.randn_like(like)), 1)
        source, hit = _after(source, _scaling(1 / factor, 1 / factor)), hit | (factor != 1)
    if "rotate" in names:
        angle = _chosen(like, p_rotate, _any_angle(like), 0)
        source, hit = _after(source, _rotation(angle)), hit | (angle != 0)
    if "stretch" in names:
        factor = _chosen(like, p, torch.exp2(0.2 * torch.randn_like(like)), 1)
        source, hit = _after(source, _scaling(1 / factor, factor)), hit | (factor != 1)
    if "rotate" in names:
        angle = _chosen(like, p_rotate, _any_angle(like), 0)
        source, hit = _after(source, _rotation(angle)), hit | (angle != 0)
    if "translate" in names:
        share = torch.randn(2, *like.shape, dtype=like.dtype, device=like.device) / 8
        share = share * _chosen(like, p, torch.ones_like(like), 0)
        source = _after(source, _translation(share[0] * width, share[1] * height))
        hit = hit | (share != 0).any(0)
    return source, hit


def draw_colours(like: Tensor, p: Tensor, names: Sequence[str]) -> Tensor:
    """Return affine maps of colour, ``(N, 4, 4)`` on (red, green, blue, 1).

    Brightness: N(0, 0.2) is added. Contrast: lognormal, a factor 2^(0.5 N(0, 1)). Luma flip: half of those
    chosen are mirrored along the grey axis. Hue: turned about that axis by U(-pi, pi). Saturation: distance
    from it times 2^N(0, 1).

    Args:
        like: ``(N,)``, for number, type and device.
        p: The probability.
        names: Which of :data:`COLOUR` to draw; others are passed over.
    """
    identity = torch.eye(4, dtype=like.dtype, device=like.device)
    grey = torch.zeros_like(identity)  # the projection onto the grey axis
    grey[:3, :3] = 1 / 3
    rest = torch.diag(identity.new_tensor([1, 1, 1, 0])) - grey  # and what is across it
    one = torch.diag(identity.new_tensor([0, 0, 0, 1]))
    colour = identity.clone().expand(len(like), 4, 4)
    if "brightness" in names:
        added = torch.zeros(len(like), 4, 4, dtype=like.dtype, device=like.device)
        added[:, :3, 3] = _chosen(like, p, 0.2 * torch.randn_like(like), 0)[:, None]
        colour = _after(identity + added, colour)
    if "contrast" in names:
        factor = _chosen(like, p, torch.exp2(0.5 * torch.randn_like(like)), 1)
        scale = torch.stack([factor, factor, factor, torch.ones_like(factor)], 1)
        colour = _after(torch.diag_embed(scale), colour)
    if "luma_flip" in names:
        mirrored = _chosen(like, p, torch.randint_like(like, 2), 0)
        colour = _after(identity - 2 * grey * mirrored[:, None, None], colour)
    if "hue" in names:
        angle = _chosen(like, p, _any_angle(like), 0)[:, None, None]
        # Rodrigues: what lies on the axis stays; what is across it turns, by its cross product with the axis.
        across = torch.zeros_like(identity)
        across[:3, :3] = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        turned = _after(one + grey + rest * angle.cos() + across * angle.sin(), colour)
        colour = torch.where(angle == 0, colour, turned)  # not but for rounding
    if "saturation" in names:
        factor = _chosen(like, p, torch.exp2(torch.randn_like(like)), 1)[:, None, None]
        colour = torch.where(factor == 1, colour, _after(one + grey + rest * factor, colour))
    return colour


def _after(second: Tensor, first: Tensor) -> Tensor:
    """Return the matrix product, never in the reduced precision that matrix products may be set to."""
    return (second[..., :, :, None] * first[..., None, :, :]).sum(-2)


def _any_angle(like: Tensor) -> Tensor:
    return (torch.rand_like(like) * 2 - 1) * math.pi


def _affine(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(list(row), -1) for row in rows], -2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _affine([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _rotation(angle: Tensor) -> Tensor:
    return _rotation_by(angle.cos(), angle.sin())


def _rotation_by(cos: Tensor, sin: Tensor) -> Tensor:
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    return _affine([[cos, sin, zero], [-sin, cos, zero], [zero, zero, one]])


def _translation(x: Tensor, y: Tensor) -> Tensor:
    """Return the map from where a pixel ends up, (x, y) further on, to where it came from."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _affine([[one, zero, -x], [zero, one, -y], [zero, zero, one]])


# ----------------------------------------------------------------------------------------------------- acting


def _move(images: Tensor, p: Tensor, names: Sequence[str]) -> Tensor:
    size = (images.shape[2], images.shape[3])
    like = images.new_zeros(len(images))
    blits = draw_blits(like, p, names, size)
    moved = blit(images, blits)
    if any(name in names for name in GEOMETRY):
        geometry, hit = draw_geometry(like, p, names, size)
        moved = torch.where(hit[:, None, None, None], resample(images, _after(blits, geometry)), moved)
    return moved


def _recolour(images: Tensor, p: Tensor, names: Sequence[str]) -> Tensor:
    colour = draw_colours(images.new_zeros(len(images)), p, names)
    matrix, added = colour[:, :3, :3], colour[:, :3, 3]
    if images.shape[1] == 1:
        matrix, added = matrix.sum(2).mean(1)[:, None, None], added.mean(1, keepdim=True)
    changed = added[:, :, None, None].expand_as(images)
    for channel in range(images.shape[1]):
        changed = changed + matrix[:, :, channel, None, None] * images[:, channel, None]
    untouched = (colour == torch.eye(4, dtype=colour.dtype, device=colour.device)).flatten(1).all(1)
    return torch.where(untouched[:, None, None, None], images, changed)


def blit(images: Tensor, source: Tensor) -> Tensor:
    """Return ``images (N, C, H, W)`` moved by ``source (N, 3, 3)`` to the nearest pixel, unmixed."""
    height, width = images.shape[-2:]
    x, y = _source_places(source, _middle(images, height), _middle(images, width), height, width)
    index = y.round().long() * width + x.round().long()
    return _take(images, index).view_as(images)


def resample(images: Tensor, source: Tensor) -> Tensor:
    """Return ``images (N, C, H, W)`` under affine maps, band-limited.

    As in the paper, the image is doubled with an orthogonal wavelet's low-pass filter (SYM6), sampled
    bilinearly at twice the pixels' density, and halved with the same filter. Under the identity that returns
    the image, but for pixels near the border. No padding is as wide as a rotation can ask for; coordinates
    are reflected at the outermost pixels' middles instead, as often as it takes, which is the same as
    reflecting the image without end.

    ``grid_sample`` is not used: it has no second derivative, which R1 needs.

    Args:
        images: Float32 or float64.
        source: ``(N, 3, 3)``, from where a pixel ends up to where it came from, in pixels from the middle.
    """
    number, channels, height, width = images.shape
    doubled = _double(images)
    taps = len(SYM6)
    rows = (_count(images, 2 * height - 2 + taps) - _CENTRE) / 2 - (height - 1) / 2
    columns = (_count(images, 2 * width - 2 + taps) - _CENTRE) / 2 - (width - 1) / 2
    x, y = _source_places(source, rows, columns, height, width)
    first = _CENTRE + 2 * _MARGIN_PX  # where the first pixel lies in the doubled image
    x, y = 2 * x + first, 2 * y + first
    left, top = x.detach().floor(), y.detach().floor()
    right_share, bottom_share = (x - left)[:, None], (y - top)[:, None]
    corner = top.long() * doubled.shape[-1] + left.long()
    upper = torch.lerp(_take(doubled, corner), _take(doubled, corner + 1), right_share)
    corner = corner + doubled.shape[-1]
    lower = torch.lerp(_take(doubled, corner), _take(doubled, corner + 1), right_share)
    moved = torch.lerp(upper, lower, bottom_share).view(number, channels, len(rows), len(columns))
    return _halve(moved)


def _middle(images: Tensor, px: int) -> Tensor:
    """Return the places of ``px`` pixels, from their middle."""
    return _count(images, px) - (px - 1) / 2


def _count(images: Tensor, number: int) -> Tensor:
    return torch.arange(number, dtype=images.dtype, device=images.device)


def _source_places(
    source: Tensor, rows: Tensor, columns: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return where a grid comes from, in pixels from the first: x and y, ``(N, rows * columns)``."""
    matrix = source[:, :, :, None, None]
    x = matrix[:, 0, 0] * columns + matrix[:, 0, 1] * rows[:, None] + matrix[:, 0, 2]
    y = matrix[:, 1, 0] * columns + matrix[:, 1, 1] * rows[:, None] + matrix[:, 1, 2]
    return _reflected(x + (width - 1) / 2, width).flatten(1), _reflected(
        y + (height - 1) / 2, height
    ).flatten(1)


def _reflected(place: Tensor, px: int) -> Tensor:
    """Fold places into [0, px - 1], as if the image went on mirrored about its outermost pixels."""
    period = 2 * (px - 1)
    place = place.remainder(period)
    return torch.minimum(place, period - place)


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Return the pixels at ``index (N, K)`` of the flattened images, ``(N, C, K)``."""
    number, channels = images.shape[:2]
    return images.flatten(2).gather(2, index[:, None].expand(number, channels, -1))


def _filter(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the filter as weights of a vertical and a horizontal convolution, one group per channel."""
    taps = torch.tensor(SYM6, dtype=images.dtype, device=images.device).expand(images.shape[1], 1, -1)
    return taps[..., None], taps[..., None, :]


def _double(images: Tensor) -> Tensor:
    """Return images of twice the density, their reflected margin included."""
    down, across = _filter(images)
    channels = images.shape[1]
    images = F.pad(images, (_MARGIN_PX,) * 4, mode="reflect")
    images = F.conv_transpose2d(images, down, stride=(2, 1), groups=channels)
    images = F.conv_transpose2d(images, across, stride=(1, 2), groups=channels)
    return 2 * images  # sqrt(2) for each direction: of every two samples, one was a zero


def _halve(images: Tensor) -> Tensor:
    """Return every other sample of the filtered images, no longer padded."""
    down, across = _filter(images)
    channels = images.shape[1]
    images = F.conv2d(images, down, stride=(2, 1), groups=channels)
    return F.conv2d(images, across, stride=(1, 2), groups=channels) / 2
