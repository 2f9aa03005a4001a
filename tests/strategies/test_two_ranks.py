"""Two processes take the step that one takes with the double batch; what they log is the mean of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from i2i_lightning.methods.base import Method
from i2i_lightning.strategies.precision import fp32, fp64
from tests.methods.runs import Record, assert_same, batches, cyclegan, distance, norm_of, pix2pix, run
from tests.strategies.test_precision import SkipsAsTold
from tests.strategies.two_ranks import ACCUMULATED_FP16, HALVES, run_all, whole

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes returned for every case."""
    return run_all(tmp_path_factory.mktemp("ranks"))


def alone(method: Method, sizes: list[int], precision: Precision | None = None) -> Record:
    """Fit in this process on the images of both, in the order that gives both the same batches."""
    items = whole(2 * sum(sizes))
    return run(method, batches(items, [2 * size for size in sizes]), precision or fp64())


@pytest.mark.parametrize(
    ("name", "build", "sizes"),
    [
        ("pix2pix", pix2pix, [2, 2, 2, 2]),
        (
            "pix2pix unconditional without norm",
            lambda: pix2pix("none", conditional=False),
            [2, 2],
        ),
        ("cyclegan", cyclegan, [2, 2]),
        ("pix2pix accumulated", lambda: pix2pix(ema_decay=0.9), [4, 3, 3]),
        ("cyclegan accumulated", cyclegan, [3, 2]),
        ("pix2pix synchronised", lambda: pix2pix("batch"), [2, 2, 2, 2]),
        ("cyclegan synchronised", lambda: cyclegan("batch"), [2, 2, 2, 2]),
        (
            "pix2pix synchronised and accumulated",
            lambda: pix2pix("batch", accumulate_batches=2),
            [2, 2, 2, 2],
        ),
        ("pix2pix in fp32", pix2pix, [2]),
        ("cyclegan in fp32", cyclegan, [2]),
        ("pix2pix synchronised in fp32", lambda: pix2pix("batch"), [2]),
    ],
)
def test_two_processes_equal_one_with_the_double_batch(
    ranks: list[dict[str, Any]], name: str, build: Callable[[], Method], sizes: list[int]
) -> None:
    first, second = (rank[name] for rank in ranks)
    for key, value in first["state"].items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(value, second["state"][key]), key
    # Losses are each process's own; gradients and states are common.
    means = [
        {key: (one[key] + two[key]) / 2 for key in one}
        for one, two in zip(first["terms"], second["terms"], strict=True)
    ]
    # Of float32 one step: in those that follow, rounding grows with every kink of |x| and of the norms.
    single = name.endswith("fp32")
    one = alone(build(), sizes, fp32() if single else fp64())
    together = Record(means, first["gradients"], first["state"], first["rates"])
    assert_same(together, one, 1e-6 if single else 1e-11)
    assert first["state"].keys() == build().state_dict().keys()


@pytest.mark.parametrize(("name", "steps", "tolerance"), [("fp16", 8, 0.1), ("scaled fp32", 6, 1e-4)])
def test_a_scaler_overflow_accumulation_clipping_and_two_processes(
    ranks: list[dict[str, Any]], name: str, steps: int, tolerance: float
) -> None:
    """Against one process in float32 that leaves the same steps out; eleven bits leave a few per cent."""
    first, second = (rank[name] for rank in ranks)
    taken = first["taken"]
    assert taken == second["taken"]
    assert first["scaler"] == second["scaler"]
    assert not all(taken[:2])
    assert len(taken) == 2 * steps
    assert taken.count(True) >= 4
    start = pix2pix(**ACCUMULATED_FP16).state_dict()
    one = alone(pix2pix(**ACCUMULATED_FP16), [1] * 4 * steps, SkipsAsTold(taken))
    moved = [[state[name] - start[name] for name in start] for state in (first["state"], one.state)]
    assert norm_of(moved[1]) > 0
    assert distance(*moved) < tolerance
    for half, full, stepped in zip(first["gradients"], one.gradients, taken, strict=True):
        if stepped:
            assert distance(half, full) < tolerance
            assert norm_of(full) > 0.5  # it is clipped after this
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_the_mean_of_both_is_logged(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["logged"] for rank in ranks)
    (row,) = first["logged"]
    for name, value in first["terms"][0].items():
        assert row[f"train/{name}"] == pytest.approx((value + second["terms"][0][name]) / 2, rel=1e-6)
    assert first["terms"] != second["terms"]


def test_rates_grow_with_the_processes(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["rates"]["rates"] == pytest.approx([4e-3, 4e-3])


def test_running_statistics_are_those_of_the_first_when_they_are_used(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["statistics"] for rank in ranks)
    means = [name for name in first["state"] if name.endswith("running_mean")]
    assert means
    for name in means:
        assert not torch.equal(first["own"][name], second["own"][name]), name
        assert torch.equal(first["own"][name], first["state"][name]), name
        assert torch.equal(first["own"][name], second["state"][name]), name


def test_a_synchronised_norm_takes_unequal_batches(ranks: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    x = torch.stack([item["real_a"] for item in whole(6)]).double().requires_grad_()
    out = norm(x)
    (out.square() * out.detach().cos()).sum().backward()
    assert x.grad is not None
    cases = [rank["unequal"] for rank in ranks]

    def same(mine: Tensor, theirs: Tensor | None) -> None:
        assert theirs is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)

    for case, half in zip(cases, HALVES, strict=True):
        same(case["out"], out.detach()[half])
        same(case["x"], x.grad[half])
        for name, buffer in norm.named_buffers():
            same(case["buffers"][name], buffer)
    same(cases[0]["weight"] + cases[1]["weight"], norm.weight.grad)
    same(cases[0]["bias"] + cases[1]["bias"], norm.bias.grad)


def test_nobody_waits_for_a_process_that_tests_alone(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["alone"] == {} for rank in ranks)
