from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2i_lightning.loggers.wandb_log import has_key, wandb_log
from i2i_lightning.types import UserError


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_clear_error_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without_wandb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_wandb)
    with pytest.raises(UserError, match=r"pip install 'i2i_lightning\[wandb\]'"):
        wandb_log(tmp_path)


def test_key_is_found_where_wandb_looks(
    no_key: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


def test_modes(no_key: None, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(UserError, match="mode=onlin:"):
        wandb_log(tmp_path, mode="onlin")
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        wandb_log(tmp_path, mode="online")


def test_offline_run_without_a_key_lies_in_the_run_folder(no_key: None, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run = tmp_path / "toy" / "now"
    logger = wandb_log(run, mode=None)
    logger.log_metrics({"train/generator/l1": 0.5}, step=3)
    logger.log_image("preview", [np.full((8, 8, 3), 200, np.uint8)])
    logger.finalize("success")
    assert wandb.run is None, "a finished run does not swallow the next one"
    (offline,) = (run / "wandb").glob("offline-run-*")
    (picture,) = offline.glob("files/media/images/*.png")
    from PIL import Image

    assert np.asarray(Image.open(picture)).mean() == 200
