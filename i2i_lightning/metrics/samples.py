"""Samples of a generator without an input side, measured as a set against the real images of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from i2i_lightning.data.module import ImageDataModule
from i2i_lightning.metrics.evaluation import OUTPUTS, Pixels, Result
from i2i_lightning.metrics.suite import SET_METRICS, MetricSuite, check_names
from i2i_lightning.types import ImageBatch, UserError
from i2i_lightning.weights.store import at_hand

Generate = Callable[[Sequence[str], Tensor | None, int], Tensor]
"""Names that stand for a noise each, labels ``(N, label_dim)`` and a seed to images ``(N, C, H, W)``."""

CEILING = "train images"


def fitting_metrics(judged: bool, inception: bool) -> tuple[str, ...]:
    """Return the metrics to take where none are named.

    Args:
        judged: Whether the judge knows such images.
        inception: Whether Inception's weights are at hand.
    """
    if not judged:
        return ("kid", "fid")  # which say what is missing
    return ("judge_distance", *(("kid", "fid") if inception else ()))


def evaluate_samples(
    generate: Generate,
    data: ImageDataModule,
    split: str,
    *,
    names: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    max_images: int | None = None,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    subset_seed: int = 0,
    train_data: Callable[[], ImageDataModule] | None = None,
    num_samples: int = 36,
) -> Result:
    """Generate as many images as a split has, with its labels, and compare the two sets.

    Everything is measured on 8-bit RGB, as it would be saved. The training images are compared with the split
    too: what samples can hope for.

    Args:
        generate: The generator; its noise is a function of name and seed.
        data: Data of one side, set up for ``split``.
        split: train, val or test.
        names: Any of the metrics of sets; None takes :func:`fitting_metrics`.
        seeds: Each gives a set of samples.
        max_images: Take the first so many images alone; None takes all.
        weights: Folder of the metrics' weights.
        device: Where images are compared.
        subset_seed: Draws the subsets of the kernel distances.
        train_data: Makes the same data with its training split set up and not augmented; None leaves the
            ceiling out.
        num_samples: How many pictures to keep.

    Raises:
        UserError: If a metric is unknown or compares pairs, does not fit the data, or its weights are not at
            hand; if there are fewer than 2 images.
    """
    judged_style: Callable[[], str | None] = getattr(data, "judged_style", lambda: None)
    judged = judged_style() is not None
    if names is None:
        folder = None if weights is None else Path(weights).expanduser()
        chosen = fitting_metrics(judged, bool(at_hand("fid_inception", folder)))
    else:
        chosen = check_names(names)
    paired = [name for name in chosen if name not in SET_METRICS]
    if paired:
        raise UserError(
            f"metrics: {', '.join(paired)} compare an output with its target, and samples have none; take "
            + ", ".join(fitting_metrics(judged, True))
        )
    if "judge_distance" in chosen and not judged:
        raise UserError(
            "metrics: judge_distance knows toy faces alone, photos and cartoons; take kid, fid for this data"
        )
    suite = MetricSuite(chosen, device, weights, seed=subset_seed)
    rows: dict[str, list[dict[str, float]]] = {OUTPUTS: []}
    samples: list[dict[str, Pixels]] = []
    sizes: dict[tuple[int, int], None] = {}
    num_images = 0
    for number, seed in enumerate(seeds):
        outputs = suite if number == 0 else suite.another()
        title = f"Evaluating {split}" + (f", seed {seed}" if len(seeds) > 1 else "")
        for batch in _batches(data, split, max_images, title):
            made = generate(batch["name"], batch.get("label"), seed)
            made_rgb = data.display_output(made, made).to(device)
            outputs.update(made_rgb)
            if number > 0:
                continue
            suite.add_targets(data.display_output(batch["real"], batch["real"]).to(device))
            num_images += len(made)
            sizes[(int(made.shape[-2]), int(made.shape[-1]))] = None
            shown = made_rgb[: num_samples - len(samples)].permute(0, 2, 3, 1).cpu().numpy()
            samples += [{"output": np.ascontiguousarray(pixels)} for pixels in shown]
        if num_images < 2:
            raise UserError(f"split={split}: {num_images} images are too few to compare; give at least 2")
        rows[OUTPUTS].append(outputs.compute())
    protocol: dict[str, dict[str, Any]] = suite.protocol()
    if chosen and train_data is not None:
        train = train_data()
        features = torch.cat(
            [
                suite.extract(train.display_output(batch["real"], batch["real"]))
                for batch in _batches(train, "train", None, "Train images")
            ]
        )
        rows[CEILING] = [suite.compare(features, suite.target_features)]
        for name in chosen:
            protocol[name]["num_train_images"] = len(features)
    return Result(rows, protocol, num_images, list(sizes), samples)


def _batches(data: ImageDataModule, split: str, max_images: int | None, title: str) -> Iterator[ImageBatch]:
    """Yield the batches of a split in order, on the CPU, under a progress bar that counts images."""
    left = max_images
    with tqdm(desc=title, unit=" images", leave=False, disable=None, delay=1.0) as bar:
        for items in data.ordered_dataloader(split):
            batch = cast(ImageBatch, data.to_network(items))
            if left is not None:
                first = {key: value[:left] for key, value in batch.items()}  # type: ignore[index]
                batch = cast(ImageBatch, first)
                left -= len(batch["real"])
            if not len(batch["real"]):
                return
            yield batch
            bar.update(len(batch["real"]))
