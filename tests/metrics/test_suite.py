from __future__ import annotations

import math
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from i2i_lightning.metrics.better import BETTER
from i2i_lightning.metrics.frechet import frechet_distance
from i2i_lightning.metrics.image import l1, ms_ssim, psnr, sharpness, ssim
from i2i_lightning.metrics.judge_distance import judge_distance
from i2i_lightning.metrics.kernel import kernel_distance
from i2i_lightning.metrics.segmentation import NOT_COUNTED, PALETTES
from i2i_lightning.metrics.suite import MAX_PSNR_DB, METRICS, MetricSuite, check_names, gather_rows
from i2i_lightning.types import UserError


def images(n: int, seed: int, px: tuple[int, int] = (48, 52)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, 6, 6, generator=generator)
    return (torch.nn.functional.interpolate(small, px, mode="bilinear") * 255).byte()


class TinyFeatures:
    """A fixed random projection of a small picture; counts what it is asked for."""

    def __init__(self) -> None:
        self.weight = torch.randn(48, 20, generator=torch.Generator().manual_seed(3))
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.seen += len(images)
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4)
        return (small.flatten(1) @ self.weight).relu()


def far_apart(image: Tensor, target: Tensor) -> Tensor:
    return (image.float() - target.float()).square().flatten(1).mean(1) / 1e4


def suite(names: Any = METRICS, **options: Any) -> MetricSuite:
    defaults: dict[str, Any] = {
        "palette": "facades",
        "kid_subset_size": 4,
        "kid_subsets": 6,
        "features": TinyFeatures(),
        "distances": {"lpips_alex": far_apart, "lpips_vgg": far_apart},
    }
    return MetricSuite(names, **(defaults | options))


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_every_figure_is_that_of_the_set_whatever_the_batches(batch: int) -> None:
    output, target, others = images(7, 0), images(7, 1), images(5, 2)
    measured = suite()
    for start in range(0, 7, batch):
        measured.update(output[start : start + batch], target[start : start + batch])
    measured.add_targets(target)
    measured.add_targets(others)  # the set may be larger than the outputs
    net = TinyFeatures()
    features, reference = net(output), net(torch.cat([target, others]))
    kid, kid_std = kernel_distance(features, reference, 4, 6)
    of_judge = judge_distance(output, torch.cat([target, others]), 4, 6)
    expected = {
        "l1": float(l1(output, target).mean()),
        "psnr": float(psnr(output, target).mean()),
        "ssim": float(ssim(output, target).mean()),
        "ms_ssim": float(ms_ssim(output, target).mean()),
        "sharpness": float(sharpness(output, target).mean()),
        "lpips_alex": float(far_apart(output, target).mean()),
        "lpips_vgg": float(far_apart(output, target).mean()),
        "fid": frechet_distance(features, reference),
        "kid": kid,
        "kid_std": kid_std,
        **dict(zip(("judge_distance", "judge_distance_std"), of_judge, strict=True)),
    }
    figures = measured.compute()
    assert list(figures) == [*expected, "pixel_accuracy", "class_accuracy", "mean_iou"]
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert measured.compute() == figures  # nothing is forgotten
    assert measured.per_image()["psnr"].tolist() == pytest.approx(psnr(output, target).tolist())


def test_the_order_of_names_is_that_of_the_figures() -> None:
    measured = suite(["kid", "psnr", "kid", "l1"])
    measured.update(images(3, 0), images(3, 1))
    measured.add_targets(images(3, 1))
    # Every subset is all three images: there is no spread to speak of.
    assert list(measured.compute()) == ["kid", "psnr", "l1"]
    measured.kid_subset_size = 2
    assert list(measured.compute()) == ["kid", "kid_std", "psnr", "l1"]
    assert check_names(["psnr", "l1", "psnr"]) == ("psnr", "l1")


def test_rows_share_networks_and_targets_but_no_outputs() -> None:
    net = TinyFeatures()
    target, copied = images(6, 1), images(6, 2)
    outputs = suite(["psnr", "fid", "kid"], features=net)
    copies = outputs.another()
    for start in (0, 3):
        outputs.add_targets(target[start : start + 3])
        outputs.update(images(6, 0)[start : start + 3], target[start : start + 3])
        copies.update(copied[start : start + 3], target[start : start + 3])
    assert net.seen == 18  # outputs, copies, targets: each once
    alone = suite(["psnr", "fid", "kid"])
    alone.update(copied, target)
    alone.add_targets(target)
    # Features of three images round otherwise than those of six.
    assert copies.compute() == pytest.approx(alone.compute(), rel=1e-4)
    assert outputs.compute()["fid"] != copies.compute()["fid"]

    # The ceiling: other targets against these, with no outputs at all.
    train = outputs.extract(images(9, 4))
    assert outputs.compare(train, outputs.target_features)["fid"] == pytest.approx(
        frechet_distance(train, outputs.target_features)
    )
    # A row on other targets leaves the shared ones alone.
    copies.use_targets([train[:4], train[4:]])
    assert len(copies.target_features) == 9
    assert len(outputs.target_features) == 6
    copies.reset()
    assert len(copies.output_features) == 0
    assert len(copies.target_features) == 9


def test_outputs_equal_to_their_targets() -> None:
    target = images(6, 0)
    measured = suite()
    measured.update(target, target)
    measured.add_targets(target)
    figures = measured.compute()
    assert figures["psnr"] == MAX_PSNR_DB
    best = {"l1": 0, "ssim": 1, "ms_ssim": 1, "sharpness": 1, "fid": 0, "pixel_accuracy": 1, "mean_iou": 1}
    assert {name: figures[name] for name in best} == pytest.approx(best, abs=1e-6)
    assert figures["kid"] < 0.2


def test_segmentation_by_palette_and_by_classes() -> None:
    palette = PALETTES["cityscapes"]
    generator = torch.Generator().manual_seed(0)
    true, pred = torch.randint(0, 19, (2, 3, 8, 9), generator=generator)
    colours = torch.tensor(palette.colours, dtype=torch.uint8)
    target, output = (colours[index].permute(0, 3, 1, 2).contiguous() for index in (true, pred))
    target[:, :, 0] = 0  # void
    by_palette = suite(["pixel_accuracy", "class_accuracy", "mean_iou"], palette="cityscapes")
    by_palette.update(output, target)
    true[:, 0] = NOT_COUNTED
    by_classes = MetricSuite(["pixel_accuracy", "class_accuracy", "mean_iou"], num_classes=19)
    for item in range(3):
        at = slice(item, item + 1)
        by_classes.update(output[at], target[at], pred[at], true[at])
    assert by_palette.compute() == by_classes.compute()
    counted = true != NOT_COUNTED
    hits = ((pred == true) & counted).sum() / counted.sum()
    assert by_palette.compute()["pixel_accuracy"] == pytest.approx(float(hits))


def test_the_protocol_says_what_was_done() -> None:
    measured = suite()
    assert {name: entry["better"] for name, entry in measured.protocol().items()} == BETTER
    measured.update(images(7, 0), images(7, 1))
    measured.add_targets(images(3, 1))
    measured.compute()
    protocol = measured.protocol()
    assert protocol["ms_ssim"]["scales"] == 3
    assert protocol["ms_ssim"]["weights"] == {"3": [0.0711, 0.453, 0.476]}
    assert protocol["kid"]["subset_size"] == 3  # clipped to the smaller set
    assert protocol["kid"]["subsets"] == 6
    assert (protocol["fid"]["num_outputs"], protocol["fid"]["num_targets"]) == (7, 3)
    assert "fewer than 2048 images" in protocol["fid"]["warning"]
    assert protocol["fid"]["network"] == "TinyFeatures"
    assert "judge_v1 of ToyFaces" in protocol["judge_distance"]["network"]
    assert protocol["judge_distance"]["weights"] == "in the package"
    assert "nearest palette colour" in protocol["mean_iou"]["read_by"]


def test_too_few_images_for_a_set_metric_give_no_number() -> None:
    measured = suite(["fid", "kid", "psnr"])
    assert all(math.isnan(value) for value in measured.compute().values())
    measured.update(images(1, 0), images(1, 1))
    measured.add_targets(images(5, 1))
    figures = measured.compute()
    assert math.isnan(figures["fid"])
    assert math.isnan(figures["kid"])
    assert figures["psnr"] > 0


def test_errors() -> None:
    with pytest.raises(UserError, match=r"^metrics: no metric lpips, is; there is l1, psnr, .*mean_iou$"):
        suite(["l1", "lpips", "is"])
    with pytest.raises(UserError, match=r"^a\.metrics: mean_iou must know the classes: give a\.palette"):
        MetricSuite(["mean_iou"], prefix="a.")
    with pytest.raises(UserError, match=r"a\.kid_subset_size=1: give at least 2"):
        suite(kid_subset_size=1, prefix="a.")
    with pytest.raises(UserError, match=r"a\.palette=nowhere"):
        suite(palette="nowhere", prefix="a.")
    small = images(2, 0, (24, 40))
    with pytest.raises(
        UserError, match=r"lpips_alex needs .* 31x31 px, these have 24x40; leave lpips_alex out"
    ):
        suite(["l1", "lpips_alex", "ssim", "kid"]).update(small, small)
    with pytest.raises(ValueError, match="paired metrics need a target"):
        suite(["psnr", "kid"]).update(small)
    with pytest.raises(ValueError, match=r"torch.float32 \(2, 3, 24, 40\): give uint8 RGB"):
        suite().update(small.float(), small)
    with pytest.raises(ValueError, match="output_classes and target_classes"):
        MetricSuite(["mean_iou"], num_classes=3).update(small, small)


@pytest.mark.parametrize("name", ["fid", "kid", "lpips_alex", "lpips_vgg"])
def test_missing_weights_are_told_before_any_image(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("I2I_WEIGHTS_DOWNLOAD", raising=False)
    with pytest.raises(UserError, match="i2i-weights get"):
        MetricSuite([name], weights=tmp_path)


def _measure_share(rank: int, rendezvous: str, results: Queue[Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    output, target = images(7, 0), images(7, 1)
    share = [[0, 1, 4, 5], [2, 3, 6, 0]][rank]  # as a sampler deals batches of two, the first image twice
    measured = suite()
    measured.update(output[share], target[share])
    measured.add_targets(target[share])
    places = torch.tensor([[0, 1, 4, 5], [2, 3, 6, -1]][rank])
    figures = measured.compute(places, places)
    rows = torch.arange(3 if rank == 0 else 1)[:, None] + 10 * rank
    uneven = gather_rows(rows, torch.tensor([0, 3, 7] if rank == 0 else [2]))
    empty = torch.empty(0, 0), torch.empty(0, dtype=torch.long)
    nothing = gather_rows(*((torch.ones(2, 4), torch.arange(2)) if rank == 0 else empty))
    results.put((rank, figures, uneven.flatten().tolist(), tuple(nothing.shape)))
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_give_the_figures_of_one(tmp_path: Path) -> None:
    measured = suite()
    measured.update(images(7, 0), images(7, 1))
    measured.add_targets(images(7, 1))
    expected = measured.compute()
    context = torch.multiprocessing.get_context("fork")
    results: Any = context.Queue()
    workers = [
        context.Process(target=_measure_share, args=(rank, str(tmp_path / "meet"), results))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    for _, figures, uneven, nothing in found:
        assert figures == pytest.approx(expected, rel=1e-5)
        assert figures["kid"] == expected["kid"]  # the same images in the same order
        assert uneven == [0, 10, 1, 2]  # by place, not by process
        assert nothing == (2, 4)
