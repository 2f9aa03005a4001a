"""Two processes embed images of their own: they find what one finds, and go on after a resume bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from i2i_lightning.methods.inversion import embed
from tests.methods.inversion_ranks import CASES, run_all, start, wanted
from tests.methods.inversions import generator, loss
from tests.methods.test_resume import assert_same

pytestmark = pytest.mark.ddp

SHARES = ([(0, 2), (4, 5)], [(2, 4), (5, 5)])
"""The images of each process, epoch by epoch."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_all(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", [*CASES, "joint ddp"])
def test_two_processes_find_what_one_finds(ranks: list[dict[str, Any]], case: str) -> None:
    stages, begin = CASES[case.removesuffix(" ddp")], start(case.removesuffix(" ddp"))
    everything = wanted(case.removesuffix(" ddp"))
    for rank, shares in zip(ranks, SHARES, strict=True):
        found = rank[case]["found"]
        assert len(found) == 2
        for one, (first, last) in zip(found, shares, strict=True):
            assert one["names"] == list(everything.names)[first:last]
            if first == last:
                assert len(one["image"]) == 0
                continue
            # In one process, one chunk: neither the process nor the chunk matters.
            alone = embed(generator(), everything, stages, loss(), begin, seed=1)
            torch.testing.assert_close(one["w_plus"], alone.w_plus[first:last], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(one["image"], alone.image[first:last], rtol=1e-4, atol=1e-4)
            assert one["steps"].tolist() == alone.steps[first:last].tolist()
            for mine, theirs in zip(one["noise"] or [], alone.noise or [], strict=True):
                torch.testing.assert_close(mine, theirs[first:last], rtol=1e-4, atol=1e-4)
            for index, weights in enumerate(one["tuned"] or []):
                assert alone.tuned is not None
                torch.testing.assert_close(weights, alone.tuned[first + index], rtol=1e-4, atol=1e-4)
    assert ranks[0][case]["batches"] == ranks[1][case]["batches"]


def test_the_images_of_one_process_may_stop_before_those_of_the_other(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["stops"]["found"][0]["steps"].tolist() for rank in ranks)
    assert first == [0, 0]
    assert second == [25, 25]


@pytest.mark.parametrize("case", CASES)
def test_both_processes_resume_in_the_middle_of_their_images(ranks: list[dict[str, Any]], case: str) -> None:
    for rank in ranks:
        assert_same(rank[f"{case} resumed"]["found"], rank[case]["found"], case)
