"""Schedules against their closed forms: no epoch at rate 0, and a resumed run may be longer."""

from __future__ import annotations

import math

import pytest
import torch

from i2i_lightning.methods.schedules import Constant, Cosine, Linear, Plateau, Schedule, Step
from i2i_lightning.types import UserError


def rates(schedule: Schedule, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # type: ignore[call-arg]
    return seen


def test_linear_is_the_reference_table() -> None:
    seen = rates(Linear(total_epochs=200, decay_epochs=100), 200)
    assert [seen[epoch - 1] for epoch in (1, 100, 101, 150, 200)] == pytest.approx(
        [1, 1, 100 / 101, 51 / 101, 1 / 101]
    )


def test_cosine_is_half_a_wave() -> None:
    seen = rates(Cosine(total_epochs=10), 10)
    assert seen == pytest.approx([(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)])


def test_step_drops() -> None:
    assert rates(Step(every_epochs=2, factor=0.1), 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("schedule", [Constant(), Linear(8, 8), Linear(8, 4), Cosine(8), Step(3)])
def test_no_epoch_has_rate_zero_nor_rises(schedule: Schedule) -> None:
    seen = rates(schedule, 10)
    assert min(seen) > 0
    assert seen == sorted(seen, reverse=True)


def test_plateau_waits_for_its_patience() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = Plateau(patience_epochs=2, factor=0.5)(optimizer)
    seen = []
    for value in (1.0, 0.5, 0.5, 0.5, 0.5, 0.5):
        optimizer.step()
        scheduler.step(value)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1, 1, 1, 1, 0.5, 0.5]


def test_a_longer_run_keeps_its_new_length_after_loading() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    short = Linear(4, 4)(optimizer)
    optimizer.step()
    short.step()
    longer = Linear(8, 4)(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    longer.load_state_dict(short.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == [1.0]


def test_slips_are_named() -> None:
    with pytest.raises(UserError, match=r"scheduler\.decay_epochs=9"):
        Linear(total_epochs=8, decay_epochs=9)
    with pytest.raises(UserError, match=r"scheduler\.every_epochs=0"):
        Step(every_epochs=0)
