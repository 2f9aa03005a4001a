"""Scores of a predicted label map: pixel accuracy, class accuracy and mean IoU, from one confusion matrix.

The matrix is summed over all pictures before anything is divided, as the papers do it (Long et al. 2015): a
rare class then weighs as much as its pixels in the whole set allow, not as the pictures that happen to show
it. Where a label map is a picture, each pixel counts as the class of the nearest palette colour, in the
output and in the target alike; a network need not hit a colour exactly, and a JPEG cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES, CLASS_PALETTE
from i2i_lightning.types import UserError

Colours = Sequence[Sequence[int]]

NOT_COUNTED = -1
"""The class of a target pixel that no score takes in."""


@dataclass(frozen=True)
class Palette:
    """The classes of a label map that is a picture, and how they are painted.

    Args:
        classes: A name for each class.
        colours: Its colour, levels of 0 to 255.
        void: Further colours that a target may hold; its pixels next to one of them are not scored. An output
            is always read as one of the classes.
    """

    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    void: tuple[tuple[int, int, int], ...] = ()

    def target_classes(self, rgb: Tensor) -> Tensor:
        """Return the class of each pixel of a target, :data:`NOT_COUNTED` next to a void colour.

        Args:
            rgb: uint8 ``(N, 3, H, W)``.

        Returns:
            Long ``(N, H, W)``.
        """
        index = nearest_colour(rgb, self.colours + self.void)
        return torch.where(index < len(self.colours), index, NOT_COUNTED)

    def output_classes(self, rgb: Tensor) -> Tensor:
        """Return the class of each pixel of an output, long ``(N, H, W)``; ``rgb`` is uint8 of 3 channels."""
        return nearest_colour(rgb, self.colours)


PALETTES = {
    # The twelve classes of the CMP Facade Database (Tylecek and Sara 2013) in the order of its labels 1 to
    # 12, in the colours of the label pictures that pix2pix is trained on: MATLAB's jet(64), every fifth entry
    # from the sixth. Those files are JPEG at half size, so that one pixel in six lies further than 40 levels
    # from every colour, at borders all of them.
    "facades": Palette(
        (
            "background",
            "facade",
            "window",
            "door",
            "cornice",
            "sill",
            "balcony",
            "blind",
            "deco",
            "molding",
            "pillar",
            "shop",
        ),
        (
            (0, 0, 223),
            (0, 48, 255),
            (0, 128, 255),
            (0, 207, 255),
            (32, 255, 223),
            (112, 255, 143),
            (191, 255, 64),
            (255, 239, 0),
            (255, 159, 0),
            (255, 80, 0),
            (255, 0, 0),
            (175, 0, 0),
        ),
    ),
    # The 19 classes that Cityscapes (Cordts et al. 2016) is scored on; its other colours are void.
    "cityscapes": Palette(
        (
            "road",
            "sidewalk",
            "building",
            "wall",
            "fence",
            "pole",
            "traffic light",
            "traffic sign",
            "vegetation",
            "terrain",
            "sky",
            "person",
            "rider",
            "car",
            "truck",
            "bus",
            "train",
            "motorcycle",
            "bicycle",
        ),
        (
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (102, 102, 156),
            (190, 153, 153),
            (153, 153, 153),
            (250, 170, 30),
            (220, 220, 0),
            (107, 142, 35),
            (152, 251, 152),
            (70, 130, 180),
            (220, 20, 60),
            (255, 0, 0),
            (0, 0, 142),
            (0, 0, 70),
            (0, 60, 100),
            (0, 80, 100),
            (0, 0, 230),
            (119, 11, 32),
        ),
        void=(
            (0, 0, 0),  # unlabelled, the car itself, out of the region of interest, static
            (111, 74, 0),  # dynamic
            (81, 0, 81),  # ground
            (250, 170, 160),  # parking
            (230, 150, 140),  # rail track
            (180, 165, 180),  # guard rail
            (150, 100, 100),  # bridge
            (150, 120, 90),  # tunnel
            (0, 0, 90),  # caravan
            (0, 0, 110),  # trailer
        ),
    ),
    "toyfaces": Palette(tuple(CLASS_NAMES), CLASS_PALETTE),
}


def find_palette(palette: str | Colours, key: str = "palette") -> Palette:
    """Return a palette by its name, or one of the colours given.

    Args:
        palette: One of :data:`PALETTES`, or a colour of three levels for each class.
        key: The config key to name in the error.

    Raises:
        UserError: If there is no such palette, or these are not colours.
    """
    if isinstance(palette, str):
        if palette not in PALETTES:
            raise UserError(
                f"{key}={palette}: there is {', '.join(PALETTES)}; or give a list of colours, [[r,g,b],...]"
            )
        return PALETTES[palette]
    colours = [tuple(colour) for colour in palette]
    if len(set(colours)) != len(colours) or len(colours) < 2:
        raise UserError(f"{key}: give a different colour for each of at least two classes, [[r,g,b],...]")
    for colour in colours:
        if len(colour) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in colour):
            raise UserError(f"{key}: {list(colour)} is not a colour; give [r,g,b], each from 0 to 255")
    names = tuple(f"class {index}" for index in range(len(colours)))
    return Palette(names, tuple((red, green, blue) for red, green, blue in colours))


def nearest_colour(rgb: Tensor, palette: Colours) -> Tensor:
    """Return the index of the palette colour nearest to each pixel, by distance in RGB.

    Args:
        rgb: uint8, or levels of 0 to 255, ``(N, 3, H, W)``.
        palette: K colours of three levels; of two that are equally near, the first is taken.

    Returns:
        Long ``(N, H, W)``, 0 to K - 1.

    >>> nearest_colour(torch.tensor([250, 10, 3]).view(1, 3, 1, 1), [(0, 0, 0), (255, 0, 0)])
    tensor([[[1]]])
    """
    colours = torch.tensor([list(colour) for colour in palette], dtype=torch.float32, device=rgb.device)
    # |p - c|^2 is smallest where 2 p.c - |c|^2 is largest: whole numbers below 2^24, exact in float32. One
    # picture at a time, because there are K floats for each pixel.
    with torch.autocast(rgb.device.type, enabled=False):
        nearest = [
            (2 * image.float().movedim(0, -1) @ colours.T - colours.square().sum(1)).argmax(-1)
            for image in rgb
        ]
    return torch.stack(nearest)


def confusion(pred_index: Tensor, true_index: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true class (row) and predicted class (column), long ``(K, K)``.

    Args:
        pred_index: Integer class maps of any shape.
        true_index: The same shape; pixels whose true class is negative are not counted.
        num_classes: K; all indices are below it.
    """
    true, pred = true_index.flatten().long(), pred_index.flatten().long()
    # What is not counted falls into a bin in front, which is cut off.
    flat = torch.where(true < 0, 0, true * num_classes + pred + 1)
    return torch.bincount(flat, minlength=num_classes**2 + 1)[1:].reshape(num_classes, num_classes)


def iou(counts: Tensor) -> Tensor:
    """Return the intersection over union of each class, float64 ``(K,)``, from a confusion matrix ``(K, K)``.

    ``IoU_k = n_kk / (sum_j n_kj + sum_j n_jk - n_kk)``; NaN for a class that occurs in neither map.

    >>> iou(confusion(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 3))
    tensor([0.5000, 0.6667,    nan], dtype=torch.float64)
    """
    counts = counts.double()
    return counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())


def mean_iou(counts: Tensor) -> Tensor:
    """Return the mean IoU over the classes that occur in the truth, 0-d."""
    return iou(counts)[counts.sum(1) > 0].mean()


def class_accuracy(counts: Tensor) -> Tensor:
    """Return the mean, over the classes in the truth, of the share of their pixels that were found, 0-d.

    ``1/K sum_k n_kk / sum_j n_kj``: the "per-class accuracy" of the pix2pix paper.
    """
    present = counts.sum(1) > 0
    return (counts.diagonal().double() / counts.sum(1))[present].mean()


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Return the share of pixels in the right class, 0-d, from a confusion matrix."""
    return counts.diagonal().sum().double() / counts.sum()
