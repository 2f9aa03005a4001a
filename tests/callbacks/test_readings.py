from __future__ import annotations

from typing import Any

import pytest
import torch

from i2i_lightning.callbacks.readings import FOLD_EVERY, Readout, Terms, TermSums, batch_size, batch_terms


def terms(**values: float) -> Terms:
    return Terms(tuple(values), torch.tensor(list(values.values())))


def test_batch_terms_are_stacked_once_per_batch(scripted: Any) -> None:
    module = scripted()
    assert batch_terms(module) is None
    module.step_terms = {"a": torch.tensor(1.0), "b": torch.tensor(2.0, dtype=torch.float64)}
    first = batch_terms(module)
    assert first is not None
    assert first.names == ("a", "b")
    assert first.values.tolist() == [1, 2]
    assert batch_terms(module) is first
    module.step_terms = {"a": torch.tensor(3.0)}
    assert batch_terms(module).values.tolist() == [3]


@pytest.mark.parametrize("batches", [1, FOLD_EVERY - 1, FOLD_EVERY, 3 * FOLD_EVERY + 1])
def test_sums_give_the_mean_of_the_batches_that_had_the_term(batches: int) -> None:
    sums = TermSums()
    for i in range(batches):
        sums.add(terms(a=float(i), b=1.0) if i % 4 == 0 else terms(a=float(i)))
    means = sums.means()
    assert means is not None
    assert sums.count == batches
    values = dict(zip(means.names, means.values.tolist(), strict=True))
    assert values == pytest.approx({"a": (batches - 1) / 2, "b": 1.0})
    sums.clear()
    assert sums.means() is None


def test_readout_on_the_cpu_has_nothing_to_wait_for() -> None:
    readout = Readout()
    assert readout.latest() == {}
    readout.offer(terms(a=0.5))
    assert readout.latest() == {"a": 0.5}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_synchronises_on_a_gpu(scripted: Any) -> None:
    module, sums, readout = scripted(), TermSums(), Readout()
    values = [torch.tensor(float(i), device="cuda") for i in range(100)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in values:
            module.step_terms = {"a": value, "b": value}
            sums.add(batch_terms(module))
        readout.offer(sums.means())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert readout.latest() == {"a": 49.5, "b": 49.5}


def test_batch_size_is_that_of_the_first_tensor() -> None:
    assert batch_size({"name": ["x"] * 7, "real_a": torch.zeros(3, 1, 2, 2)}) == 3
    assert batch_size([torch.zeros(2)]) == 2
    assert batch_size({"name": ["x"]}) == 0
