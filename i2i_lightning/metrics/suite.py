"""Every metric of a translation behind one object: images in, one number a name and its protocol out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from i2i_lightning.metrics.better import BETTER
from i2i_lightning.metrics.frechet import frechet_distance
from i2i_lightning.metrics.image import (
    SSIM_K1,
    SSIM_K2,
    SSIM_SIGMA_PX,
    SSIM_WINDOW_PX,
    l1,
    ms_ssim,
    ms_ssim_scales,
    ms_ssim_weights,
    psnr,
    sharpness,
    ssim,
)
from i2i_lightning.metrics.judge_distance import JudgeFeatures
from i2i_lightning.metrics.kernel import clipped_subset_size, kernel_distance
from i2i_lightning.metrics.segmentation import (
    Colours,
    class_accuracy,
    confusion,
    find_palette,
    mean_iou,
    pixel_accuracy,
)
from i2i_lightning.types import UserError

METRICS = tuple(BETTER)
SET_METRICS = ("fid", "kid", "judge_distance")
INCEPTION_METRICS = ("fid", "kid")
SEGMENTATION_METRICS = ("pixel_accuracy", "class_accuracy", "mean_iou")
PAIRED_METRICS = tuple(name for name in METRICS if name not in SET_METRICS + SEGMENTATION_METRICS)

MAX_PSNR_DB = 100.0
"""PSNR of equal images is infinite, and one such image would make every mean infinite: it counts as this
much."""

FEW_IMAGES = 2048
"""With fewer images than features the covariances of FID are singular, and its bias is large."""

_WEIGHTS_NAMES = {
    "fid": "fid_inception",
    "kid": "fid_inception",
    "lpips_alex": "lpips_alexnet",
    "lpips_vgg": "lpips_vgg16",
}

Features = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


def check_names(names: Sequence[str], key: str = "metrics") -> tuple[str, ...]:
    """Return the names of metrics, each once.

    Args:
        names: Any of :data:`METRICS`.
        key: The config key to name in the error.

    Raises:
        UserError: If there is no such metric.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"{key}: no metric {', '.join(unknown)}; there is {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))


class MetricSuite:
    """Measure translations against their targets, pair by pair, and against a set of targets.

    Images are uint8 RGB, as they would be saved. A paired metric is a mean over images; ``fid``, ``kid`` and
    ``judge_distance``, which needs no weights but means something on ToyFaces alone, compare all outputs
    given to :meth:`update` with all targets given to :meth:`add_targets`, which need neither be pairs nor
    equally many; the three segmentation metrics share one confusion matrix over all pixels. Several rows of a
    table (outputs, copied input, another seed) are several suites made by :meth:`another`: they share the
    networks and the targets, whose features are computed once::

        outputs = MetricSuite(["psnr", "kid"], device)
        copied = outputs.another()
        for real_a, fake_b, real_b in ...:
            outputs.add_targets(real_b)
            outputs.update(fake_b, real_b)
            copied.update(real_a, real_b)

    Networks are built at once, so that missing weights are told before any image is translated.

    Args:
        names: Any of :data:`METRICS`.
        device: Where networks and images are.
        weights: Folder of weights, instead of the usual ones.
        palette: What the segmentation metrics read label pictures by: a name, or colours; see
            :func:`~i2i_lightning.metrics.segmentation.find_palette`.
        num_classes: How many classes there are, where :meth:`update` is given class maps instead.
        kid_subset_size: Images in a subset of KID and of the judge's distance, at least 2.
        kid_subsets: Subsets, at least 1.
        seed: Draws the subsets.
        prefix: Put before ``metrics``, ``palette`` and ``kid_...`` in errors, to name the config key.
        features: Use these for ``fid`` and ``kid``, not Inception: uint8 ``(N, 3, H, W)`` to ``(N, D)``.
        distances: Use these for ``lpips_...``, by name: two images as above to ``(N,)``.

    Raises:
        UserError: If a name is unknown, weights are not at hand, or classes are asked for but not given.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device | str = "cpu",
        weights: str | Path | None = None,
        palette: str | Colours | None = None,
        num_classes: int | None = None,
        kid_subset_size: int = 50,
        kid_subsets: int = 100,
        seed: int = 0,
        prefix: str = "",
        features: Features | None = None,
        distances: Mapping[str, Distance] | None = None,
    ) -> None:
        self.names = check_names(names, f"{prefix}metrics")
        self.device = torch.device(device)
        for key, value, least in (("kid_subset_size", kid_subset_size, 2), ("kid_subsets", kid_subsets, 1)):
            if value < least:
                raise UserError(f"{prefix}{key}={value}: give at least {least}")
        self.kid_subset_size, self.kid_subsets, self.seed = kid_subset_size, kid_subsets, seed
        self.prefix = prefix
        self.palette = None if palette is None else find_palette(palette, f"{prefix}palette")
        self.num_classes = len(self.palette.colours) if self.palette is not None else num_classes
        of_classes = [name for name in self.names if name in SEGMENTATION_METRICS]
        if of_classes and self.num_classes is None:
            raise UserError(
                f"{prefix}metrics: {', '.join(of_classes)} must know the classes: give {prefix}palette, or "
                "data whose output is a label map"
            )
        self._judge = JudgeFeatures(self.device) if "judge_distance" in self.names else None
        self._features = self._build_features(features, weights)
        self._distances = self._build_distances(distances or {}, weights)
        self._targets: list[Tensor] = []
        self.reset()

    def _build_features(self, given: Features | None, weights: str | Path | None) -> Features | None:
        if not set(INCEPTION_METRICS) & set(self.names):
            return None
        if given is not None:
            return given
        from i2i_lightning.metrics.inception import InceptionFeatures

        network: Features = InceptionFeatures(folder=weights).to(self.device)
        return network

    def _build_distances(
        self, given: Mapping[str, Distance], weights: str | Path | None
    ) -> dict[str, Distance]:
        distances: dict[str, Distance] = {}
        for name in self.names:
            if not name.startswith("lpips_"):
                continue
            if name in given:
                distances[name] = given[name]
                continue
            from i2i_lightning.losses.perceptual import LPIPS

            net: Any = name.removeprefix("lpips_")
            distances[name] = LPIPS(net, folder=weights).to(self.device)
        return distances

    def another(self) -> MetricSuite:
        """Return a suite for another row: nothing measured yet, but the same networks, settings and targets.

        The targets stay shared: added to one of the two, they are there for both.
        """
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Forget the outputs; the targets stay until :meth:`use_targets` puts others in their place."""
        self._values: dict[str, list[Tensor]] = {name: [] for name in self.names if name in PAIRED_METRICS}
        self._counts: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._scales: set[int] = set()
        self._compared: tuple[int, int] | None = None

    # ------------------------------------------------------------------------------------------------ images

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Return the features by which sets are compared, float32 ``(N, D)`` on the suite's device.

        The judge's come first, then Inception's. Where no sets are compared there are none: ``(N, 0)``.
        """
        _check_images(images)
        images = images.to(self.device)
        parts = [torch.empty(len(images), 0, device=self.device)]
        with torch.autocast(self.device.type, enabled=False):
            for features in (self._judge, self._features):
                if features is not None:
                    parts.append(features(images).float())
        return torch.cat(parts, 1)

    @property
    def _compares_sets(self) -> bool:
        return self._judge is not None or self._features is not None

    def add_targets(self, images: Tensor) -> Tensor:
        """Add images to the set that outputs are compared with.

        Args:
            images: uint8 RGB ``(N, 3, H, W)``.

        Returns:
            Their features, as :meth:`extract` does.
        """
        features = self.extract(images)
        if self._compares_sets:
            self._targets.append(features)
        return features

    def use_targets(self, features: Tensor | Sequence[Tensor]) -> None:
        """Put known features in place of all targets, for this suite alone.

        Args:
            features: What :meth:`extract` returned for them, in one piece or in batches.
        """
        self._targets = [features] if isinstance(features, Tensor) else list(features)

    @torch.no_grad()
    def update(
        self,
        output: Tensor,
        target: Tensor | None = None,
        output_classes: Tensor | None = None,
        target_classes: Tensor | None = None,
    ) -> None:
        """Measure some outputs; the targets of ``fid`` and ``kid`` are not taken from here.

        Args:
            output: uint8 RGB ``(N, 3, H, W)``.
            target: The same shape; None where there are no pairs and no paired metric is measured.
            output_classes: Long ``(N, H, W)``, where the output is known as classes and needs no palette.
            target_classes: As ``output_classes``, with negative classes where nothing is to be scored.

        Raises:
            UserError: If the images are too small for a metric.
        """
        _check_images(output)
        output = output.to(self.device)
        needs_target = any(name not in SET_METRICS for name in self.names)
        if needs_target and target is None:
            raise ValueError(f"{', '.join(self.names)}: paired metrics need a target for each output")
        if target is not None:
            _check_images(target)
            target = target.to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                for name, values in self._values.items():
                    values.append(self._measure(name, output, target).float())
            if set(SEGMENTATION_METRICS) & set(self.names):
                self._counts.append(self._confusion(output, target, output_classes, target_classes))
        if self._compares_sets:
            self._outputs.append(self.extract(output))

    def _measure(self, name: str, output: Tensor, target: Tensor) -> Tensor:
        height_px, width_px = output.shape[-2:]
        least_px = _smallest_px(name)
        if min(height_px, width_px) < least_px:
            raise UserError(
                f"{self.prefix}metrics: {name} needs images of at least {least_px}x{least_px} px, these have "
                f"{height_px}x{width_px}; leave {name} out"
            )
        if name in self._distances:
            return self._distances[name](output, target)
        if name == "ms_ssim":
            self._scales.add(ms_ssim_scales(*output.shape[-2:]))
            return ms_ssim(output, target)
        if name == "psnr":
            return psnr(output, target).clamp(max=MAX_PSNR_DB)
        return {"l1": l1, "ssim": ssim, "sharpness": sharpness}[name](output, target)

    def _confusion(
        self,
        output: Tensor,
        target: Tensor,
        output_classes: Tensor | None,
        target_classes: Tensor | None,
    ) -> Tensor:
        """Return the confusion matrix of each image, flattened: long ``(N, K * K)``."""
        if self.palette is not None:
            output_classes = self.palette.output_classes(output) if output_classes is None else output_classes
            target_classes = self.palette.target_classes(target) if target_classes is None else target_classes
        if output_classes is None or target_classes is None or self.num_classes is None:
            raise ValueError("give output_classes and target_classes, or make the suite with a palette")
        pairs = zip(output_classes.to(self.device), target_classes.to(self.device), strict=True)
        return torch.stack([confusion(pred, true, self.num_classes).flatten() for pred, true in pairs])

    # ----------------------------------------------------------------------------------------------- figures

    @property
    def target_features(self) -> Tensor:
        """The features of all targets so far, ``(M, D)``: those of this process."""
        return torch.cat(self._targets) if self._targets else torch.empty(0, 0, device=self.device)

    @property
    def output_features(self) -> Tensor:
        """The features of all outputs so far, ``(N, D)``: those of this process."""
        return torch.cat(self._outputs) if self._outputs else torch.empty(0, 0, device=self.device)

    def per_image(self) -> dict[str, Tensor]:
        """Return the paired metrics of each image, in the order they came, float32 ``(N,)`` on the CPU."""
        return {name: torch.cat(values).cpu() for name, values in self._values.items() if values}

    def compute(
        self, output_places: Tensor | None = None, target_places: Tensor | None = None
    ) -> dict[str, float]:
        """Return every figure, with ``kid_std`` beside ``kid``, and the same beside ``judge_distance``.

        Nothing is forgotten, and more images may follow.

        Args:
            output_places: Give both to merge the images of all processes (``torch.distributed``); every one
                must call this, and gets the same figures. Where each of this process's outputs belongs, long
                ``(N,)``, negative for those that another process has too; see :func:`gather_rows`.
            target_places: The same for the targets, ``(M,)``.

        Returns:
            A figure for each name, in the order of the names; NaN for distances of fewer than two outputs or
            targets, and for means over nothing.
        """

        def merged(parts: list[Tensor], places: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
            rows = torch.cat(parts) if parts else torch.empty(0, 0, dtype=dtype, device=self.device)
            return (rows if places is None else gather_rows(rows, places)).cpu()

        figures = {
            name: float(merged([part[:, None] for part in parts], output_places).double().mean())
            for name, parts in self._values.items()
        }
        if set(SEGMENTATION_METRICS) & set(self.names):
            assert self.num_classes is not None  # the constructor asked for it
            counts = merged(self._counts, output_places, torch.long).sum(0)
            counts = counts if counts.numel() else counts.new_zeros(self.num_classes**2)
            counts = counts.reshape(self.num_classes, self.num_classes)
            figures["pixel_accuracy"] = float(pixel_accuracy(counts))
            figures["class_accuracy"] = float(class_accuracy(counts))
            figures["mean_iou"] = float(mean_iou(counts))
        if self._compares_sets:
            outputs = merged(self._outputs, output_places)
            targets = merged(self._targets, target_places)
            self._compared = (len(outputs), len(targets))
            figures |= self.compare(outputs, targets)
        names = [key for name in self.names for key in (name, f"{name}_std")]
        return {name: figures[name] for name in names if name in figures}

    def compare(self, features: Tensor, target_features: Tensor) -> dict[str, float]:
        """Return the distances of two sets of features, as far as they are asked for.

        With the features of the train targets, it says how well one does who can do the task: the ceiling.

        Args:
            features: ``(N, D)``, from :meth:`extract`.
            target_features: ``(M, D)``.

        Returns:
            A figure for each, with its deviation ``<name>_std`` over subsets; without that where every subset
            is the whole of both sets, whose lack of spread would look like certainty.
        """
        figures: dict[str, float] = {}
        few = min(len(features), len(target_features)) < 2
        width = 0 if self._judge is None else self._judge.width
        of_judge, of_inception = (
            (features[:, :width], target_features[:, :width]),
            (features[:, width:], target_features[:, width:]),
        )
        if "fid" in self.names:
            figures["fid"] = math.nan if few else frechet_distance(*of_inception)
        for name, pair in (("kid", of_inception), ("judge_distance", of_judge)):
            if name not in self.names:
                continue
            figures[name], figures[f"{name}_std"] = (
                (math.nan, math.nan)
                if few
                else kernel_distance(*pair, self.kid_subset_size, self.kid_subsets, self.seed)
            )
            if max(len(features), len(target_features)) <= self.kid_subset_size:
                del figures[f"{name}_std"]
        return figures

    # ---------------------------------------------------------------------------------------------- protocol

    def protocol(self) -> dict[str, dict[str, Any]]:
        """Return how each figure came about, as plain containers: what to print beside it.

        What depends on the images (scales, counts, clipped subsets) is that of the last :meth:`compute`.
        """
        return {name: {"better": BETTER[name], **self._protocol_of(name)} for name in self.names}

    def _protocol_of(self, name: str) -> dict[str, Any]:
        paired = {"images": "8-bit RGB, own resolution", "mean": "over images"}
        similarity = {
            "window": f"{SSIM_WINDOW_PX} px Gaussian, sigma {SSIM_SIGMA_PX}, inside the image",
            "constants": f"K1 {SSIM_K1}, K2 {SSIM_K2}, L 255",
            "channels": "each measured, then averaged",
        }
        if name == "l1":
            return {**paired, "unit": "mean absolute difference, in units where the range is [-1, 1]"}
        if name == "psnr":
            return {**paired, "unit": f"dB, peak 255; equal images count as {MAX_PSNR_DB:g}"}
        if name == "ssim":
            return {**paired, **similarity}
        if name == "sharpness":
            return {**paired, "unit": "root mean square of the Laplacian, output over target"}
        if name == "ms_ssim":
            scales = sorted(self._scales)
            return {
                **paired,
                **similarity,
                "scales": scales[0] if len(scales) == 1 else scales,
                "weights": {str(count): [round(w, 4) for w in ms_ssim_weights(count)] for count in scales},
            }
        if name in self._distances:
            return {**paired, **_described(name, self._distances[name])}
        if name in SEGMENTATION_METRICS:
            read = "class maps" if self.palette is None else "nearest palette colour in RGB"
            return {
                "classes": self.num_classes,
                "read_by": read,
                "mean": "over all pixels of the set"
                if name == "pixel_accuracy"
                else "over the classes in the targets, of one confusion matrix over the set",
            }
        return self._protocol_of_set(name)

    def _protocol_of_set(self, name: str) -> dict[str, Any]:
        network = self._judge if name == "judge_distance" else self._features
        facts: dict[str, Any] = {"images": "8-bit RGB", **_described(name, network)}
        if self._compared is not None:
            facts["num_outputs"], facts["num_targets"] = self._compared
        if name == "fid":
            facts["covariance"] = "sample (n - 1), float64, exact trace of the root"
            if self._compared is not None and min(self._compared) < FEW_IMAGES:
                facts["warning"] = (
                    f"fewer than {FEW_IMAGES} images: biased upwards, compare at equal counts only; read KID"
                )
            return facts
        size = self.kid_subset_size
        if self._compared is not None:
            size = clipped_subset_size(*self._compared, size)
        return {
            **facts,
            "kernel": "(x.y / d + 1)^3, unbiased MMD^2",
            "subset_size": size,
            "subsets": self.kid_subsets,
            "seed": self.seed,
            f"{name}_std": "over subsets",
        }


def gather_rows(rows: Tensor, places: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their places, the same to each.

    Args:
        rows: This process's, ``(N, D)`` or none, on a device that the process group can reach; N may differ.
        places: Where each belongs, long ``(N,)``, different over all processes; rows at negative ones are
            left out, as what a sampler repeats must be.

    Returns:
        ``(M, D)``, on the same device.
    """
    processes = torch.distributed.get_world_size()
    shape = torch.tensor(rows.shape, device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(processes)]
    torch.distributed.all_gather(shapes, shape)
    counts, widths = torch.stack(shapes).unbind(1)
    if int(counts.max()) == 0:
        return rows
    padded = rows.new_zeros(int(counts.max()), int(widths.max()))
    padded[: len(rows), : rows.shape[1]] = rows
    padded_places = torch.full((len(padded),), -1, dtype=torch.long, device=rows.device)
    padded_places[: len(rows)] = places.to(rows.device)
    gathered = [torch.empty_like(padded) for _ in range(processes)]
    gathered_places = [torch.empty_like(padded_places) for _ in range(processes)]
    torch.distributed.all_gather(gathered, padded)
    torch.distributed.all_gather(gathered_places, padded_places)
    order = torch.cat(gathered_places)
    counted = (order >= 0).nonzero()[:, 0]
    return torch.cat(gathered)[counted[order[counted].argsort()]]


def _smallest_px(name: str) -> int:
    """Return the shortest side that a metric can measure."""
    if name in ("ssim", "ms_ssim"):
        return SSIM_WINDOW_PX
    if name == "sharpness":
        return 3
    if name.startswith("lpips_"):
        from i2i_lightning.losses.perceptual import SMALLEST_PX

        return SMALLEST_PX[name.removeprefix("lpips_")]
    return 1


def _described(name: str, network: Any) -> dict[str, Any]:
    """Return what a network says of itself, or what it is if somebody else's measures."""
    if not hasattr(network, "protocol"):
        return {"network": type(network).__name__}
    return {"network": network.protocol, "weights": _WEIGHTS_NAMES.get(name, "in the package")}


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of {images.dtype} {tuple(images.shape)}: give uint8 RGB (N, 3, H, W)")
