from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from i2i_lightning.callbacks.health import Health, pair_spread, stuck_share
from i2i_lightning.loggers.csv_log import CSVLog
from i2i_lightning.types import UserError


def fit(make_trainer: Any, module: Any, data: Any, epochs: int = 4, **options: Any) -> Health:
    health = Health(**({"patience_batches": 12, "num_samples": 4} | options))
    make_trainer([health], max_epochs=epochs, log_every_n_steps=3).fit(module, datamodule=data)
    return health


def kinds(health: Health) -> list[str]:
    return [warning["kind"] for warning in health.warnings]


@pytest.mark.parametrize(
    ("real", "fake", "kind", "words"),
    [
        (1.0, 1.0, "discriminator perfect", "tells real from fake every time"),
        (1.0, 0.0, "discriminator says real", "calls everything real"),
        (0.0, 1.0, "discriminator says fake", "calls everything fake"),
    ],
)
def test_a_game_that_is_over_is_told_in_words(
    real: float, fake: float, kind: str, words: str,
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    terms = healthy | {"discriminator/accuracy_real": real, "discriminator/accuracy_fake": fake}
    with caplog.at_level(logging.WARNING):
        health = fit(make_trainer, scripted(lambda batch: terms), shapes(batch_size=2))
    assert kinds(health) == [kind]  # once, although it holds for all 24 batches
    assert health.warnings[0]["epoch"] == 2
    assert words in health.warnings[0]["text"]
    assert words in caplog.text


def test_a_good_discriminator_that_errs_now_and_then_is_no_warning(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    def script(batch: int) -> dict[str, float]:
        value = 0.9 if batch % 6 == 0 else 1.0
        return healthy | {"discriminator/accuracy_real": value, "discriminator/accuracy_fake": value}

    assert kinds(fit(make_trainer, scripted(script), shapes(batch_size=2))) == []


def test_a_blind_discriminator_is_the_aim_and_no_warning(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    blind = {f"discriminator/{name}": 0.5 for name in ("accuracy_real", "accuracy_fake")}
    blind |= {f"discriminator/{name}": 0.0 for name in ("logit_real", "logit_fake")}
    assert kinds(fit(make_trainer, scripted(lambda batch: healthy | blind), shapes(batch_size=2))) == []


def test_huge_logits_and_the_critic_that_has_no_scale(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    terms = healthy | {"discriminator/logit_fake": -80.0}
    assert kinds(fit(make_trainer, scripted(lambda batch: terms), shapes(batch_size=2))) == [
        "discriminator logits"
    ]
    critic = scripted(lambda batch: terms)
    critic.loss = type("Loss", (), {"gan_mode": "wgangp"})()
    assert kinds(fit(make_trainer, critic, shapes(batch_size=2))) == []


def test_collapse_and_saturation_of_the_previews(scripted: Any, shapes: Any, make_trainer: Any) -> None:
    data = shapes(batch_size=4)
    grey = scripted(output=lambda real_a: torch.full_like(real_a, 0.3) + 0.001 * real_a)
    assert kinds(fit(make_trainer, grey, data)) == ["collapse"]
    stuck = scripted(output=lambda real_a: real_a.sign())
    assert kinds(fit(make_trainer, stuck, data)) == ["saturation"]
    assert kinds(fit(make_trainer, scripted(output=lambda real_a: real_a), data)) == []


def test_targets_at_the_ends_of_the_range_make_no_saturation(
    scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    class BlackAndWhite(shapes):  # type: ignore[misc]
        def to_network(self, batch: Any) -> Any:
            batch = super().to_network(batch)
            return batch | {"real_b": batch["real_b"].sign()}

    drawing = scripted(output=lambda real_a: real_a.sign())
    assert kinds(fit(make_trainer, drawing, BlackAndWhite(batch_size=4))) == []


def test_a_warning_is_repeated_only_after_some_epochs(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any
) -> None:
    terms = healthy | {"discriminator/logit_real": 99.0}
    health = fit(make_trainer, scripted(lambda batch: terms), shapes(batch_size=4), epochs=7, repeat_epochs=3)
    assert [warning["epoch"] for warning in health.warnings] == [1, 4, 7]


def test_state_survives_a_checkpoint(healthy: Any, scripted: Any, shapes: Any, make_trainer: Any) -> None:
    terms = healthy | {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 1.0}
    first = fit(make_trainer, scripted(lambda batch: terms), shapes(batch_size=4), epochs=3)
    assert kinds(first) == []  # nine batches of the twelve
    second = Health(patience_batches=12)
    second.load_state_dict(first.state_dict())
    make_trainer([second], max_epochs=1, log_every_n_steps=3).fit(
        scripted(lambda batch: terms), datamodule=shapes(batch_size=4)
    )
    assert kinds(second) == ["discriminator perfect"]


def test_smoothed_values_are_logged(
    healthy: Any, scripted: Any, shapes: Any, make_trainer: Any, tmp_path: Path
) -> None:
    def script(batch: int) -> dict[str, float]:
        return healthy | {"discriminator/accuracy_real": float(batch % 3 == 0)}

    make_trainer([Health()], max_epochs=1, log_every_n_steps=3, logger=CSVLog(tmp_path)).fit(
        scripted(script), datamodule=shapes(batch_size=2)
    )
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "5"]
    assert {row["health/discriminator/accuracy_real"] for row in rows} == {"0.3333333"}
    assert {row["health/discriminator/logit_fake"] for row in rows} == {"-0.1"}


def test_measures() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert pair_spread(images) == pytest.approx(2 / 3)
    assert pair_spread(images[:1]) == 0
    assert stuck_share(torch.tensor([-1.2, -0.99, 0.0, 0.97])) == 0.5
    with pytest.raises(UserError, match="patience_batches=0"):
        Health(patience_batches=0)
