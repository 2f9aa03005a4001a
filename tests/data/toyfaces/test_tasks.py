"""The table of tasks is light and says what the data module does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from i2i_lightning.data.toyfaces.tasks import TASKS, channels


def test_the_table_imports_nothing_heavy():
    code = (
        "import sys, i2i_lightning.data.toyfaces.tasks;"
        "print([m for m in ('torch', 'numpy', 'lightning', 'PIL') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_channels():
    assert channels("parsing_to_photo", "in") == 11
    assert channels("grey_to_colour_lab", "out") == 2
    assert channels("edges_to_photo", "in") == 1
    assert len(TASKS) == 9
    with pytest.raises(ValueError, match=r"data.task=nothing: choose one of regions_to_photo"):
        channels("nothing", "in")
    with pytest.raises(ValueError, match="side=left"):
        channels("edges_to_photo", "left")
