"""The kill harness: runs survive it, and it notices when one does not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.interrupt import __main__ as interrupt
from benchmarks.interrupt.__main__ import Chain, Kill, Reference, deal, draw, table
from benchmarks.interrupt.compare import compare, differences_of, unreadable
from benchmarks.interrupt.fuse import FIRST_BATCH, MOMENTS, RESUMING, SPOTS, STARTING


def harness(checkout: Path, *words: str, patch: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, after ``patch`` has broken something."""
    script = f"import sys\nfrom benchmarks.interrupt.__main__ import main\n{patch}\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_run_that_is_killed_ends_as_if_it_were_not(checkout: Path, tmp_path: Path) -> None:
    done = harness(
        checkout, "--times", "4", "--methods", "pix2pix", "--moments", "saving", "resuming", "step", "cache",
        "--output", str(tmp_path / "result.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 4 | 4 | 4 | 4 |" in done.stdout
    assert "everything is bit-equal and whole" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["times"] == 4
    assert result["wrong"] == []
    assert all(run["equal"] for run in result["runs"])


@pytest.mark.slow
def test_cyclegan_with_its_pools_survives_every_moment(checkout: Path) -> None:
    done = harness(checkout, "--times", "7", "--methods", "cyclegan")
    assert done.returncode == 0, done.stdout + done.stderr
    for moment in MOMENTS:
        assert f"| {moment} | 1 | 1 | 1 | 1 |" in done.stdout


@pytest.mark.ddp
def test_two_processes_that_train_together_survive(checkout: Path) -> None:
    done = harness(
        checkout, "--times", "4", "--methods", "pix2pix", "--ranks", "2", "--moments", "saving", "step"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_new_interpreters_do_as_well(checkout: Path) -> None:
    done = harness(checkout, "--times", "1", "--methods", "pix2pix", "--moments", "step", "--fresh")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "patch",
    [
        (
            "import i2i_lightning.callbacks.checkpoints as c\n"
            "c.restore_random_states = lambda trainer, states, batches: None"
        ),
        (
            "import i2i_lightning.methods.base as b\n"
            "save = b.Method.on_save_checkpoint\n"
            "def forgetful(self, checkpoint):\n"
            "    save(self, checkpoint)\n"
            "    states = checkpoint['optimizer_states'][0]['state']\n"
            "    for key, state in states.items():\n"
            "        states[key] = {**state, 'exp_avg': state['exp_avg'] * 0}\n"
            "b.Method.on_save_checkpoint = forgetful"
        ),
    ],
    ids=["the-random-state-is-not-restored", "an-optimiser-forgets"],
)
def test_a_broken_resume_is_noticed(checkout: Path, patch: str) -> None:
    # Three kills: one may fall before the first checkpoint, where nothing can be lost.
    done = harness(
        checkout, "--times", "3", "--methods", "pix2pix", "--moments", "step", "--seed", "2", patch=patch
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERS" in done.stdout
    assert "other values" in done.stdout
    assert "| all | 3 | 3 | 3 | 0 |" in done.stdout


def test_every_moment_names_functions_that_are_there() -> None:
    from importlib import import_module

    for spot in [FIRST_BATCH, *(spot for spots in SPOTS.values() for spot in spots)]:
        module, _, path = spot.partition(":")
        owner: object = import_module(module)
        for name in path.split("."):
            owner = getattr(owner, name)
        assert callable(owner)
    assert {STARTING, RESUMING, *SPOTS} == set(MOMENTS)


class TestDealing:
    def test_all_moments_get_their_share(self) -> None:
        runs = deal(50, interrupt.METHODS, MOMENTS, random.Random(0))
        counts = Counter(moment for own in runs.values() for run in own for moment in run)
        assert sum(counts.values()) == 50
        assert max(counts.values()) - min(counts.values()) <= 1
        for own in runs.values():
            for run in own:
                assert 1 <= len(run) <= interrupt.KILLS_OF_A_RUN
                assert run[0] != RESUMING
                ranks = [{STARTING: 0, "cache": 1}.get(moment, 2) for moment in run]
                assert ranks == sorted(ranks)

    def test_the_place_in_a_stretch_is_drawn(self) -> None:
        reference = Reference(
            Path(), dict.fromkeys(SPOTS["step"], [0.5] * 10), dict.fromkeys(SPOTS["step"], [100] * 10)
        )
        rng = random.Random(0)
        plans = [draw("step", 0.35, reference, rng) for _ in range(200)]
        assert {plan.entry for plan in plans} == {4}
        assert {plan.by_line for plan in plans} == {False, True}
        assert min(plan.lines for plan in plans) < 10
        assert max(plan.lines for plan in plans) > 90
        assert all(0 <= plan.seconds <= 0.5 for plan in plans)
        assert draw("step", 5.0, reference, rng).entry == 10

    def test_the_table(self) -> None:
        good = Chain("pix2pix", [Kill("step", "line 1", resumed=True)])
        bad = Chain("pix2pix", [Kill("step", "line 2", ["last.ckpt"], True), Kill("saving", "line 3")], ["x"])
        lines = table([good, bad], ("step", "saving")).splitlines()
        assert lines[2:] == [
            "| step | 2 | 1 | 2 | 1 |",
            "| saving | 1 | 1 | 0 | 0 |",
            "| all | 3 | 2 | 2 | 1 |",
        ]


class TestComparing:
    @pytest.fixture
    def chains(self, tmp_path: Path) -> tuple[Path, Path]:
        """Two small runs that are the same but for what depends on the clock."""
        for number, name in enumerate(("a", "b")):
            run = tmp_path / name / "run"
            (run / "checkpoints").mkdir(parents=True)
            (run / "images").mkdir()
            saved = {
                "state_dict": {"w": torch.tensor([0.0, 1.0])},
                "callbacks": {"G": {"seconds": 1.0 + number}},
            }
            torch.save(saved, run / "checkpoints" / "last.ckpt")
            Image.new("RGB", (4, 4), (1, 2, 3)).save(run / "images" / "epoch_0001.png")
            (run / "metrics.csv").write_text(
                f"step,epoch,loss,perf/images_per_s\n0,0,1.5,{number}\n1,0,,{number}\n"
            )
            (run / "index.html").write_text("<html></html>\n")
        (tmp_path / "b" / "run" / "resumes.jsonl").write_text("{}\n")
        return tmp_path / "a", tmp_path / "b"

    def test_the_same(self, chains: tuple[Path, Path]) -> None:
        assert compare(*chains) == []

    def test_one_bit_of_a_weight(self, chains: tuple[Path, Path]) -> None:
        saved = {"state_dict": {"w": torch.tensor([-0.0, 1.0])}, "callbacks": {"G": {"seconds": 1.0}}}
        torch.save(saved, chains[1] / "run" / "checkpoints" / "last.ckpt")
        assert compare(*chains) == ["run/checkpoints/last.ckpt: /state_dict/w: other values"]

    def test_a_row_of_the_log(self, chains: tuple[Path, Path]) -> None:
        text = "step,epoch,loss,perf/images_per_s\n0,0,1.5,3\n0,0,1.5,3\n"
        (chains[1] / "run" / "metrics.csv").write_text(text)
        assert compare(*chains) == ["run/metrics.csv: : 1 and 2 entries"]
        (chains[1] / "run" / "metrics.csv").write_text(text[:-4])
        assert compare(*chains)[0] == "run/metrics.csv cannot be read: a row is not whole"

    def test_a_picture_and_what_was_begun(self, chains: tuple[Path, Path]) -> None:
        run = chains[1] / "run"
        Image.new("RGB", (4, 4), (1, 2, 4)).save(run / "images" / "epoch_0001.png")
        (run / "checkpoints" / ".last.ckpt.77.tmp").write_bytes(b"half")
        assert compare(*chains) == [
            "run/checkpoints/.last.ckpt.77.tmp was begun and not ended",
            "run/checkpoints/.last.ckpt.77.tmp is left over",
            "run/images/epoch_0001.png: other bytes",
        ]
        assert unreadable(chains[1], whole_only=True) == []
        (run / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04half")
        assert "run/checkpoints/last.ckpt cannot be read" in unreadable(chains[1], whole_only=True)[0]

    def test_a_missing_file(self, chains: tuple[Path, Path]) -> None:
        (chains[1] / "run" / "index.html").unlink()
        assert compare(*chains) == ["run/index.html is missing"]

    def test_trees(self) -> None:
        nan = float("nan")
        assert differences_of({"a": [1, nan, None]}, {"a": [1, nan, None]}) == []
        assert differences_of({"a": 1}, {"a": 1.0}) == ["/a: int and float"]
        assert differences_of({"a": 1}, {"b": 1}) == ["/a: only on one side", "/b: only on one side"]
        assert differences_of([torch.zeros(2)], [torch.zeros(2, dtype=torch.float64)]) == ["/0: other values"]
