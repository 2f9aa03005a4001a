"""Which checkpoints there are, whole, at every instant; and what becomes of the random states."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from i2i_lightning.callbacks import random_state as states
from i2i_lightning.callbacks.checkpoints import Checkpoints
from i2i_lightning.checkpoints.io import read_checkpoint
from i2i_lightning.checkpoints.seal import what_is_wrong
from i2i_lightning.types import UserError


class Saver:
    """As much of a trainer as writing takes: each checkpoint holds the number of batches so far."""

    is_global_zero = True

    def __init__(self, root: Path) -> None:
        self.callbacks: list[Any] = []
        self.loggers: list[Any] = []
        self.default_root_dir = root
        self.batches = 0
        self.fit_loop = self

    @property
    def epoch_loop(self) -> Any:
        counts = type("Counts", (), {"processed": self.batches})
        return type("Loop", (), {"batch_progress": type("Progress", (), {"total": counts})})

    def save_checkpoint(self, path: Path) -> None:
        torch.save({"state_dict": {}, "batches": self.batches}, path)


def batches_in(path: Path) -> int:
    return int(read_checkpoint(path)["batches"])


def write(checkpoints: Checkpoints, trainer: Any) -> None:
    trainer.batches += 1
    checkpoints.save_now(trainer)


@pytest.mark.parametrize("keep_last", [1, 2, 4])
def test_the_last_ones_are_kept(tmp_path: Path, keep_last: int) -> None:
    checkpoints, trainer = Checkpoints(monitor=None, keep_last=keep_last), Saver(tmp_path)
    for _ in range(6):
        write(checkpoints, trainer)
    names = ["last.ckpt", "last_1.ckpt", "last_2.ckpt", "last_3.ckpt"][:keep_last]
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [batches_in(folder / name) for name in names] == [6, 5, 4, 3][:keep_last]
    checkpoints.save_now(trainer)  # type: ignore[arg-type]
    assert batches_in(folder / "last.ckpt") == 6
    assert keep_last == 1 or batches_in(folder / "last_1.ckpt") == 5, "the same batch is written once"


def test_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"callbacks\.checkpoints\.keep_last=0: give at least 1"):
        Checkpoints(keep_last=0)


@pytest.mark.parametrize("via_copy", [False, True], ids=["write", "copy"])
def test_killed_at_any_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, via_copy: bool) -> None:
    """A process that vanishes in front of any call to the system leaves whole files under all names."""
    survived = False
    for instant in range(100):
        root = tmp_path / str(instant)
        checkpoints, trainer = Checkpoints(monitor=None, keep_last=3), Saver(root)
        for _ in range(3):
            write(checkpoints, trainer)
        process = os.fork()
        if process == 0:
            left = [instant]

            def dying(call: Any, left: list[int] = left) -> Any:
                def wrapped(*args: Any, **kwargs: Any) -> Any:
                    if left[0] == 0:
                        os._exit(9)
                    left[0] -= 1
                    return call(*args, **kwargs)

                return wrapped

            for name in ("link", "replace", "unlink", "fsync", "open", "rename"):
                setattr(os, name, dying(getattr(os, name)))
            trainer.batches += 1
            if via_copy:
                checkpoints._write(trainer, "best.ckpt")  # type: ignore[arg-type]
                checkpoints._copy(trainer, "best.ckpt", "last.ckpt")  # type: ignore[arg-type]
            else:
                checkpoints.save_now(trainer)  # type: ignore[arg-type]
            os._exit(0)
        survived = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        folder = root / "checkpoints"
        found = {path.name: batches_in(path) for path in folder.glob("*.ckpt")}
        assert found["last.ckpt"] in (3, 4), (instant, found)
        assert found["last_1.ckpt"] in (2, 3), (instant, found)
        assert found["last_2.ckpt"] in (1, 2), (instant, found)
        assert all(what_is_wrong(path) is None for path in folder.glob("*.ckpt"))
        # The next process goes on as if nothing had happened.
        trainer.batches = found["last.ckpt"]
        write(checkpoints, trainer)
        assert batches_in(folder / "last.ckpt") == found["last.ckpt"] + 1
        assert batches_in(folder / "last_1.ckpt") == found["last.ckpt"]
        if survived:
            break
    assert survived
    assert instant > 8


class Ranks:
    """As much of a trainer as random states take."""

    def __init__(self, rank: int) -> None:
        self.global_rank = rank
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


def draws() -> list[float]:
    return [*torch.rand(2).tolist(), float(np.random.rand()), __import__("random").random()]


def test_every_rank_draws_numbers_of_its_own() -> None:
    found = {}
    for rank in range(3):
        L.seed_everything(5, workers=True, verbose=False)
        states.seed_rank(Ranks(rank))  # type: ignore[arg-type]
        found[rank] = draws()
        L.seed_everything(5, workers=True, verbose=False)
        states.seed_rank(Ranks(rank))  # type: ignore[arg-type]
        assert draws() == found[rank]
    L.seed_everything(5, workers=True, verbose=False)
    assert draws() == found[0], "the first rank is as it was in a run of one process"
    assert len({tuple(values) for values in found.values()}) == 3
    L.seed_everything(6, workers=True, verbose=False)
    states.seed_rank(Ranks(1))  # type: ignore[arg-type]
    assert draws() != found[1]


def test_a_rank_that_was_not_there_is_seeded_afresh() -> None:
    L.seed_everything(5, workers=True, verbose=False)
    states.seed_rank(Ranks(1))  # type: ignore[arg-type]
    first = draws()
    torch.manual_seed(5)
    saved = [states.random_state()]
    states.restore_random_states(Ranks(1), saved, batches=7)  # type: ignore[arg-type]
    assert draws() != first, "it does not repeat the noise of the beginning"
    states.restore_random_states(Ranks(0), saved, batches=7)  # type: ignore[arg-type]
    torch.manual_seed(5)
    states.set_random_state(saved[0])
    expected = draws()
    states.restore_random_states(Ranks(0), saved, batches=7)  # type: ignore[arg-type]
    assert draws() == expected
