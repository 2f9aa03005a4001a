"""A trained generator measured on a split: its outputs beside a plain copy of the input and the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from i2i_lightning.data.module import ImageDataModule
from i2i_lightning.data.toyfaces.geometry import CLASS_NAMES
from i2i_lightning.metrics.better import FACES_BETTER, JUDGE_BETTER
from i2i_lightning.metrics.hidden_pairs import NUM_CANDIDATES, change_outside, partner_ranks
from i2i_lightning.metrics.image import l1
from i2i_lightning.metrics.judge import Judge, Scores, load_judge
from i2i_lightning.metrics.suite import (
    PAIRED_METRICS,
    SEGMENTATION_METRICS,
    SET_METRICS,
    MetricSuite,
    check_names,
)
from i2i_lightning.metrics.table import mean_and_deviation
from i2i_lightning.types import ImageFormat, UserError

Translate = Callable[[Tensor, Sequence[str], int], Tensor]
"""Network inputs ``(N, C, H, W)``, the images' names and a seed to network outputs ``(N, C', H, W)``."""

Pixels = npt.NDArray[np.uint8]

READ_BY = dict.fromkeys(JUDGE_BETTER, "judge_v1") | {
    "rank_first": f"mean absolute pixel difference among {NUM_CANDIDATES}",
    "background_change": "mean absolute difference from the source, levels of 255, by the true parsing",
}
BACKGROUND = CLASS_NAMES.index("background")

OUTPUTS, COPY, REAL, CEILING = "outputs", "copied input", "real targets", "train targets"


@dataclass(frozen=True)
class Shown:
    """One batch of a split, seen in the direction that is evaluated.

    Args:
        source: What the network is given, float ``(N, C, H, W)``.
        source_rgb: The same for people, uint8 ``(N, 3, H, W)``.
        names: Names of the sources.
        targets_rgb: The real images that outputs are compared with as a set, uint8 ``(M, 3, H, W)``.
        pair_rgb: The target of each source, uint8 ``(N, 3, H, W)``; None where there are no pairs.
        pair: The same in network space.
        truth: ``parsing``, ``landmarks`` and ``parameters`` of the sources, on ToyFaces.
    """

    source: Tensor
    source_rgb: Tensor
    names: list[str]
    targets_rgb: Tensor
    pair_rgb: Tensor | None = None
    pair: Tensor | None = None
    truth: dict[str, Tensor] = field(default_factory=dict)

    def first(self, sources: int, targets: int) -> Shown:
        """Return the first so many sources, with all that belongs to them, and the first so many targets."""
        return Shown(
            source=self.source[:sources],
            source_rgb=self.source_rgb[:sources],
            names=self.names[:sources],
            targets_rgb=self.targets_rgb[:targets],
            pair_rgb=None if self.pair_rgb is None else self.pair_rgb[:sources],
            pair=None if self.pair is None else self.pair[:sources],
            truth={key: value[:sources] for key, value in self.truth.items()},
        )


@dataclass
class Result:
    """What an evaluation found.

    Args:
        rows: By row of the table (outputs, copied input, ...): the figures of each seed.
        protocol: By metric: how its figures came about.
        num_images: Sources that were translated.
        sizes_px: The (height, width) of the sources, each once.
        samples: The first few as pictures, a row each: input, output and, where there are pairs, target.
    """

    rows: dict[str, list[dict[str, float]]]
    protocol: dict[str, dict[str, Any]]
    num_images: int
    sizes_px: list[tuple[int, int]]
    samples: list[dict[str, Pixels]]

    @property
    def sizes(self) -> str:
        """The sizes in words: ``128x128 px``."""
        shown = [f"{height}x{width}" for height, width in self.sizes_px[:3]]
        return ", ".join(shown + (["..."] if len(self.sizes_px) > 3 else [])) + " px"

    def report(self) -> dict[str, Any]:
        """Return all but the samples as plain containers."""
        return {
            "images": self.num_images,
            "sizes_px": [list(size) for size in self.sizes_px],
            "protocol": self.protocol,
            "figures": self.figures(),
            "per_seed": self.rows[OUTPUTS],
        }

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return mean and, over several seeds, deviation of every figure of every row."""
        return {row: mean_and_deviation(seeds) for row, seeds in self.rows.items()}


def look(batch: Mapping[str, Any], data: ImageDataModule, direction: str) -> Shown:
    """Return a network batch of ``data`` as it is seen in ``direction``: ``ab``, or ``ba`` without pairs."""
    real_a, real_b = batch["real_a"], batch["real_b"]
    if "name" in batch:
        truth = {key: batch[key] for key in ("parsing", "landmarks", "parameters") if key in batch}
        target = data.display_output(real_b, real_a)
        return Shown(real_a, data.display_input(real_a), batch["name"], target, target, real_b, truth)
    here, there = direction[0], direction[1]
    sides = {"a": data.display_input(real_a), "b": data.display_output(real_b, real_a)}
    # The shorter set is gone through again and again; every image counts once.
    first, first_there = batch[f"first_{here}"].cpu(), batch[f"first_{there}"].cpu()
    partner = batch[f"partner_{here}"][first] if f"partner_{here}" in batch else None
    truth = {
        key: batch[f"{key}_{here}"][first]
        for key in ("parsing", "landmarks", "parameters")
        if f"{key}_{here}" in batch
    }
    names = [name for name, new in zip(batch[f"name_{here}"], first.tolist(), strict=True) if new]
    return Shown(
        source=batch[f"real_{here}"][first],
        source_rgb=sides[here][first],
        names=names,
        targets_rgb=sides[there][first_there],
        pair_rgb=None if partner is None else shown_output(data, partner, partner, direction),
        pair=partner,
        truth=truth,
    )


def shown_output(data: ImageDataModule, output: Tensor, source: Tensor, direction: str) -> Tensor:
    """Return network outputs in ``direction`` for people, uint8 ``(N, 3, H, W)``."""
    return data.display_output(output, source) if direction == "ab" else data.display_input(output)


def fitting_metrics(output: ImageFormat, pairs: bool, palette: str | None) -> tuple[str, ...]:
    """Return the metrics to take where none are named: all that mean something for these outputs."""
    if not pairs:
        return ("kid", "fid")
    if output.kind == "labels":
        return SEGMENTATION_METRICS
    return (*PAIRED_METRICS, "kid", "fid", *(SEGMENTATION_METRICS if palette else ()))


def evaluate(
    translate: Translate,
    data: ImageDataModule,
    split: str,
    *,
    direction: str = "ab",
    names: Sequence[str] | None = None,
    palette: str | None = None,
    seeds: Sequence[int] = (0,),
    max_images: int | None = None,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    subset_seed: int = 0,
    train_data: Callable[[], ImageDataModule] | None = None,
    back: Translate | None = None,
    num_samples: int = 8,
) -> Result:
    """Translate a split and measure it.

    Everything is measured on 8-bit RGB, as it would be saved (``display_output``). On ToyFaces the judge
    reads outputs, copied inputs and real targets as well. ``fid`` and ``kid`` also compare the train targets
    with this split's: what an output can hope for.

    Args:
        translate: The generator.
        data: The data, set up for ``split``.
        split: train, val or test.
        direction: ``ab``, or ``ba`` where the data has no pairs.
        names: The metrics; None takes :func:`fitting_metrics`.
        palette: What label pictures in colour are read by.
        seeds: Each translates the whole split once.
        max_images: Take the first so many images alone; None takes all.
        weights: Folder of the metrics' weights.
        device: Where networks run and images are compared.
        subset_seed: Draws the subsets of KID.
        train_data: Makes the same data with its training split set up and not augmented; None leaves the
            ceiling out.
        back: The generator of the other direction; with it ``cycle_l1`` says how far an image comes back
            from where it was.
        num_samples: How many pictures to keep.

    Raises:
        UserError: If a metric is unknown, does not fit the data, or its weights are not at hand; if there is
            no image.
    """
    batches = Batches(data, split, direction, max_images)
    first = next(iter(batches), None)
    if first is None:
        raise UserError(f"split={split}: there is no image in it")
    pairs = first.pair_rgb is not None
    output = data.formats()[1 if direction == "ab" else 0]
    hidden = not getattr(data, "aligned", True)
    chosen = fitting_metrics(output, not hidden, palette) if names is None else check_names(names)
    unfit = [name for name in chosen if name not in SET_METRICS]
    if unfit and not pairs:
        raise UserError(f"metrics: {', '.join(unfit)} compare pairs, and this data has none; take kid, fid")
    classes = output.channels if output.kind == "labels" else None
    suite = MetricSuite(
        chosen, device, weights, None if classes else palette, num_classes=classes, seed=subset_seed
    )
    judged_style: Callable[[str], str | None] = getattr(data, "judged_style", lambda direction: None)
    style = judged_style(direction)
    judge = load_judge(device) if style is not None and pairs and first.truth else None

    rows: dict[str, list[dict[str, float]]] = {OUTPUTS: []}
    sizes: dict[tuple[int, int], None] = {}
    samples: list[dict[str, Pixels]] = []
    copied = suite.another()
    readers: dict[str, Reader] = {}
    if judge is not None and style is not None:
        readers = {row: Reader(judge, style, hidden) for row in (OUTPUTS, COPY, REAL)}
    num_images = 0
    for number, seed in enumerate(seeds):
        cycles: list[Tensor] = []
        outputs = suite if number == 0 else suite.another()
        if number > 0 and readers:
            readers[OUTPUTS] = readers[OUTPUTS].another()
        for shown in batches.with_bar(f"Evaluating {split}" + (f", seed {seed}" if len(seeds) > 1 else "")):
            if number == 0:
                suite.add_targets(shown.targets_rgb)
            if not shown.names:
                continue
            fake, cycle_rgb = translate(shown.source, shown.names, seed), None
            fake_rgb = shown_output(data, fake, shown.source, direction).to(device)
            maps = (fake.argmax(1), shown.pair.argmax(1)) if classes and shown.pair is not None else ()
            outputs.update(fake_rgb, shown.pair_rgb, *maps)
            if back is not None:
                cycle = back(fake, shown.names, seed)
                other = direction[::-1]
                cycle_rgb = shown_output(data, cycle, shown.source, other).to(device)
                cycles.append(l1(cycle_rgb, shown.source_rgb.to(device)).cpu())
            if OUTPUTS in readers:
                readers[OUTPUTS].read(fake_rgb, shown)
            if number > 0:
                continue
            num_images += len(shown.names)
            sizes[(int(shown.source.shape[-2]), int(shown.source.shape[-1]))] = None
            samples += _pictures(shown, fake_rgb, cycle_rgb)[: num_samples - len(samples)]
            if not classes:
                copied.update(shown.source_rgb, shown.pair_rgb)
            if readers:
                assert shown.pair_rgb is not None
                readers[COPY].read(shown.source_rgb, shown)
                readers[REAL].read(shown.pair_rgb, shown)
        figures = outputs.compute() | (readers[OUTPUTS].figures() if readers else {})
        rows[OUTPUTS].append(figures | ({"cycle_l1": float(torch.cat(cycles).mean())} if cycles else {}))
    if not classes:
        rows[COPY] = [copied.compute() | (readers[COPY].figures() if readers else {})]
    if readers:
        rows[REAL] = [readers[REAL].figures()]
    protocol = suite.protocol()
    if readers:
        read = rows[REAL][0]
        protocol |= {name: {"better": FACES_BETTER[name], "read_by": READ_BY[name]} for name in read}
    if back is not None:
        unit = "mean absolute difference of source and F(G(source)), in units where the range is [-1, 1]"
        protocol["cycle_l1"] = {"better": "lower", "images": "8-bit RGB", "unit": unit}
    of_sets = [name for name in chosen if name in SET_METRICS]
    if of_sets and train_data is not None:
        train = Batches(train_data(), "train", direction, None).with_bar("Train targets")
        features = torch.cat([suite.extract(shown.targets_rgb) for shown in train])
        rows[CEILING] = [suite.compare(features, suite.target_features)]
        for name in of_sets:
            protocol[name]["num_train_targets"] = len(features)
    return Result(rows, protocol, num_images, list(sizes), samples)


class Reader:
    """What the truth behind ToyFaces tells of one row of the table.

    Args:
        judge: Who reads the pictures.
        style: The style that they should have.
        hidden: Whether the pairs are hidden from the method, so that finding them is an achievement.
    """

    def __init__(self, judge: Judge, style: str, hidden: bool) -> None:
        self.scores = Scores(judge)
        self.style = style
        self.hidden = hidden
        self._pictures: list[Tensor] = []
        self._partners: list[Tensor] = []
        self._changes: list[Tensor] = []

    def another(self) -> Reader:
        """Return a reader that has read nothing yet."""
        return Reader(self.scores.judge, self.style, self.hidden)

    def read(self, pictures: Tensor, shown: Shown) -> None:
        """Score pictures, uint8 ``(N, 3, H, W)``, that stand for the targets of ``shown``'s sources."""
        truth = shown.truth
        self.scores.update(pictures, truth["parsing"], truth["landmarks"], truth["parameters"])
        if self.hidden and shown.pair_rgb is not None:
            pictures = pictures.cpu()
            self._pictures.append(pictures)
            self._partners.append(shown.pair_rgb.cpu())
            face = truth["parsing"].cpu() != BACKGROUND
            self._changes.append(change_outside(pictures, shown.source_rgb.cpu(), face))

    def figures(self) -> dict[str, float]:
        """Return the figures named in :data:`JUDGE_BETTER`, and of hidden pairs those of the other."""
        found = self.scores.compute()
        figures = {name: found[name.removeprefix("judge_")] for name in JUDGE_BETTER if name != "judge_style"}
        figures["judge_style"] = found["taken_for"][self.style]
        if self._pictures:
            ranks = partner_ranks(torch.cat(self._pictures), torch.cat(self._partners))
            figures["rank_first"] = float((ranks == 1).float().mean())
            figures["background_change"] = float(torch.cat(self._changes).nanmean())
        return figures


@dataclass(frozen=True)
class Batches:
    """A split in order, in one direction, on the CPU.

    Args:
        data: The data, set up for ``split``.
        split: train, val or test.
        direction: ``ab`` or ``ba``.
        max_images: Stop after so many sources and targets each; None takes all.
    """

    data: ImageDataModule
    split: str
    direction: str
    max_images: int | None

    def __iter__(self) -> Iterator[Shown]:
        sources_left = targets_left = self.max_images
        for batch in self.data.ordered_dataloader(self.split):
            shown = look(cast(Mapping[str, Any], self.data.to_network(batch)), self.data, self.direction)
            if sources_left is not None and targets_left is not None:
                shown = shown.first(sources_left, targets_left)
                sources_left -= len(shown.names)
                targets_left -= len(shown.targets_rgb)
                if not shown.names and not len(shown.targets_rgb):
                    return
            yield shown

    def with_bar(self, title: str) -> Iterator[Shown]:
        """Yield the batches under a progress bar that counts sources."""
        with tqdm(desc=title, unit=" images", leave=False, disable=None, delay=1.0) as bar:
            for shown in self:
                yield shown
                bar.update(len(shown.names))


def _pictures(shown: Shown, fake_rgb: Tensor, cycle_rgb: Tensor | None) -> list[dict[str, Pixels]]:
    columns = {"input": shown.source_rgb, "output": fake_rgb}
    if cycle_rgb is not None:
        columns["cycle"] = cycle_rgb
    if shown.pair_rgb is not None:
        columns["target"] = shown.pair_rgb
    arrays = {name: images.permute(0, 2, 3, 1).cpu().numpy() for name, images in columns.items()}
    return [
        {name: np.ascontiguousarray(images[index]) for name, images in arrays.items()}
        for index in range(len(shown.names))
    ]
