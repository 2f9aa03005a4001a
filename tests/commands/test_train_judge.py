"""``i2i-train-judge`` writes weights and scores, and says what is wrong in one line."""

from __future__ import annotations

import json

import pytest
import torch

from i2i_lightning.commands.train_judge import main


def test_it_writes_weights_and_scores(tmp_path, capsys):
    threads = torch.get_num_threads()
    main(["--out", str(tmp_path), "--faces", "8", "--steps", "2", "--batch-size", "4", "--held-out", "2"])
    torch.set_num_threads(threads)
    assert torch.load(tmp_path / "judge_v1.pt", weights_only=True)
    scores = json.loads((tmp_path / "judge_v1.json").read_text())
    assert scores["recipe"]["steps"] == 2
    assert 0 <= scores["test"]["photo_64"]["iou"] <= 1
    assert "photo_128: mean IoU" in capsys.readouterr().out


def test_a_slip_is_one_line(tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["--out", str(tmp_path), "--steps", "1"])
    assert str(error.value) == "i2i-train-judge: --steps 1: give at least 2"
