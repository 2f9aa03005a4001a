"""Sweeps of the command line: the paper's ablations as jobs, and jobs that fail among others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from i2i_lightning.cli.app import App
from i2i_lightning.cli.record import Run
from i2i_lightning.types import UserError

Jobs = Callable[..., list[Run]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def jobs(*words: str) -> list[Run]:
    seen: list[Run] = []
    assert App("i2i-train", "train", seen.append, "pix2pix_toy").main(words) == 0
    return seen


def test_pix2pix_losses_are_those_of_the_paper() -> None:
    runs = jobs("-m", "experiment=pix2pix_toy", "sweep=pix2pix_losses", "seed=1,2")
    assert [run.config.seed for run in runs] == [1, 2] * 5
    found = {
        run.overrides[0]: (
            run.config.loss.lambda_l1,
            run.config.loss.lambda_gan,
            run.config.method.conditional,
            run.config.discriminator.in_channels,
        )
        for run in runs
    }
    assert found == {
        "variant=l1": (100, 0, True, 6),
        "variant=gan": (0, 1, False, 3),
        "variant=cgan": (0, 1, True, 6),
        "variant=l1+gan": (100, 1, False, 3),
        "variant=l1+cgan": (100, 1, True, 6),
    }
    # All else is the experiment's.
    assert {run.config.generator.base_channels for run in runs} == {32}
    assert len({run.folder.parent for run in runs}) == 1
    assert [run.folder.name for run in runs] == [str(number) for number in range(10)]


def test_patches_and_generators_of_the_paper() -> None:
    runs = jobs("-m", "experiment=pix2pix_toy", "sweep=pix2pix_patch", "data.crop_px=128")
    found = [run.config.discriminator.get("num_layers", 0) for run in runs]
    assert found == [0, 1, 3, 5]
    assert {run.config.discriminator.base_channels for run in runs} == {16}
    runs = jobs("experiment=pix2pix_toy", "sweep=pix2pix_generator")  # says itself that it is a sweep
    found = [(run.config.generator.skips, run.config.loss.lambda_gan) for run in runs]
    assert found == [(True, 0), (True, 1), (False, 0), (False, 1)]
    assert {run.config.generator.base_channels for run in runs} == {32}


def test_cyclegan_losses_are_those_of_the_paper() -> None:
    from hydra.utils import instantiate

    runs = jobs("-m", "experiment=cyclegan_toy", "sweep=cyclegan_losses")
    found = {}
    for run in runs:
        weights = instantiate(run.config.loss).generator_weights
        parts = ("gan_ab", "cycle_a", "cycle_b", "identity_b")
        found[run.overrides[0].removeprefix("variant=")] = tuple(weights[part] for part in parts)
    assert found == {
        "cycle_alone": (0, 10, 10, 0),
        "gan_alone": (1, 0, 0, 0),
        "gan+forward": (1, 10, 0, 0),
        "gan+backward": (1, 0, 10, 0),
        "gan+cycle": (1, 10, 10, 0),
        "gan+cycle+identity": (1, 10, 10, 5),
    }


STUDIES = sorted((Path(__file__).resolve().parents[2] / "conf" / "sweep").glob("optuna_*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_value_of_a_study_can_be_trained(file: Path) -> None:
    """Of each category all values, of each range both ends: composed, checked, and the method built."""
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.utils import instantiate

    from i2i_lightning import config
    from i2i_lightning.cli.check import check_config
    from i2i_lightning.cli.optuna_sweeper import distribution

    params = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    config.register()
    values: dict[str, list[Any]] = {}
    with initialize_config_dir(str(file.parents[1]), version_base="1.3"):
        for word in OverridesParser.create().parse_overrides(
            [f"{key}={space}" for key, space in params.items()]
        ):
            found = distribution(word)
            ends = getattr(found, "choices", None) or (found.low, found.high)  # type: ignore[attr-defined]
            assert len(ends) > 1
            values[word.get_key_element()] = list(ends)
        experiment = "cyclegan_toy" if "cyclegan" in file.stem else "pix2pix_toy"
        for turn in range(max(map(len, values.values()))):
            drawn = [f"{key}={ends[turn % len(ends)]}" for key, ends in values.items()]
            composed = compose("train", overrides=[f"experiment={experiment}", *drawn])
            check_config(composed)
            composed.generator.base_channels = composed.discriminator.base_channels = 2
            instantiate(composed.method, _convert_="all")


def test_one_bad_job_spoils_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []

    def task(run: Run) -> None:
        if run.config.seed == 2:
            raise UserError("the disk is full\nmake room")
        if run.config.seed == 4:
            raise ZeroDivisionError("a bug")
        done.append(run.config.seed)

    words = ["-m", "experiment=pix2pix_toy", "seed=1,2,3,4,5", "hydra.sweep.dir=here"]
    assert App("i2i-train", "train", task).main(words) == 1
    assert done == [1, 3, 5]
    said = capsys.readouterr().err
    assert "i2i-train: job 1 failed: the disk is full" in said
    assert "ZeroDivisionError: a bug" in said
    assert "Error executing job" not in said
    assert said.endswith(
        "i2i-train: 2 of 5 jobs failed, the others are done:\n"
        "  here/1: the disk is full\n  here/3: ZeroDivisionError: a bug\n"
    )
    note = json.loads(Path("here/1/failure.json").read_text())
    assert note == {"error": "the disk is full\nmake room", "overrides": ["experiment=pix2pix_toy", "seed=2"]}

    # The same job once more, as a cluster starts it: on its own, in its folder.
    assert (
        App("i2i-train", "train", lambda run: None).main([*words[1:2], "seed=2", "hydra.run.dir=here/1"]) == 0
    )
    assert not Path("here/1/failure.json").exists()
    again = [*words[1:2], "seed=4", "hydra.run.dir=here/3"]
    assert App("i2i-train", "train", task).main([*again[:1], "seed=2", again[2]]) == 1
    assert json.loads(Path("here/3/failure.json").read_text())["error"].startswith("the disk is full")


def test_a_value_that_cannot_be_composed_is_told_before_any_job(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Run] = []
    words = ["-m", "experiment=pix2pix_toy", "variant=l1,l2"]
    assert App("i2i-train", "train", seen.append).main(words) == 1
    assert not seen
    assert "variant=l2: no such option" in capsys.readouterr().err
