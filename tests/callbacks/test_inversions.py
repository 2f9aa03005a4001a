"""Table and page of an inversion, from the files that all processes left."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from i2i_lightning.callbacks import inversions
from i2i_lightning.callbacks.inversions import InversionResults, read_rows, write_table
from i2i_lightning.checkpoints.latents import Latent, save_latent
from i2i_lightning.types import UserError


def leave(folder: Path, name: str, **metrics: float) -> None:
    """Write what a process leaves for an image."""
    save_latent(
        folder / "latents" / f"{name}.safetensors", Latent(torch.zeros(2, 3), "f", name, metrics=metrics)
    )
    for kind in ("pictures", "targets"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(folder / kind / f"{name}.png")


def test_the_table_is_of_all_files_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path, "b", psnr=20.0, steps=7)
    leave(tmp_path, "sub/<a>", psnr=30.5, steps=8, loss_mse=0.25)
    rows = read_rows(tmp_path, ["sub/<a>", "missing", "b"])
    assert [row["image"] for row in rows] == ["sub/<a>", "b"]
    write_table(tmp_path, rows, ["a note", "a note"])
    assert (tmp_path / "results.md").read_text() == (
        "| image | PSNR, dB | steps |\n| --- | --- | --- |\n| sub/<a> | 30.5 | 8 |\n| b | 20 | 7 |\n"
        "| mean of 2 | 25.25 | 7.5 |\n\nPSNR of 8-bit pictures, peak 255.\na note\n"
    )
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [(row["image"], row["psnr"], row["loss_mse"]) for row in csv.DictReader(file)] == [
            ("sub/<a>", "30.5", "0.25"),
            ("b", "20.0", ""),
        ]
    page = (tmp_path / "index.html").read_text()
    assert "sub/&lt;a&gt;" in page
    assert "<a>" not in page
    assert page.count("data:image/") == 2
    assert 'src="http' not in page
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["image", "PSNR,", "dB", "steps"]
    assert printed[4:] == ["", "PSNR of 8-bit pictures, peak 255.", "a note"]


def test_many_images_are_printed_as_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{index:02d}" for index in range(20)]
    for index, name in enumerate(names):
        leave(tmp_path, name, psnr=float(index))
    write_table(tmp_path, read_rows(tmp_path, names))
    assert capsys.readouterr().out.splitlines()[1].split() == ["mean", "of", "20", "9.5"]
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/") == 16, "a page with a thousand pictures inside opens nowhere"
    for name in names[16:]:
        assert f'<a href="pictures/{name}.png">{name}: {int(name)} dB</a>' in page


def test_figures_are_read_from_the_header_alone(tmp_path: Path) -> None:
    """Latents with tuned weights are as large as the generator."""
    leave(tmp_path, "a", psnr=20.0)
    path = tmp_path / "latents" / "a.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({"other": torch.full((1,), math.nan)}, path, header)  # no latent could be made of this
    assert read_rows(tmp_path, ["a"]) == [{"image": "a", "psnr": 20.0}]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"a\.safetensors: not a latent file .* or not a whole one"):
        read_rows(tmp_path, ["a"])


def test_nothing_found_writes_nothing(tmp_path: Path) -> None:
    write_table(tmp_path, read_rows(tmp_path, ["a"]))
    assert list(tmp_path.iterdir()) == []


def test_figures_are_of_pictures_as_they_are_saved() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(2, 3, 16, 16) * 2 - 1
    found = (wanted + 0.1 * torch.randn(2, 3, 16, 16)).clamp(-1, 1)
    figures = InversionResults()._measure(found, wanted)
    for index in range(2):
        one, other = (np.round((each[index].double().numpy() + 1) * 127.5) for each in (found, wanted))
        expected = 10 * math.log10(255**2 / np.mean((one - other) ** 2))
        assert float(figures["psnr"][index]) == pytest.approx(expected, abs=1e-3)
        assert float(figures["mse"][index]) == pytest.approx(
            float((found[index] - wanted[index]).square().mean()), rel=1e-5
        )
    assert bool((figures["ssim"] < 1).all())
    assert "lpips" not in figures


def test_peak_memory_without_a_gpu_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=3 * 2**20))
    for platform, wanted in (("linux", 3 * 2**10), ("darwin", 3)):
        monkeypatch.setattr(inversions, "resource", usage)
        monkeypatch.setattr(inversions.sys, "platform", platform)
        assert inversions.peak_memory_mb(cpu) == wanted
    monkeypatch.setattr(inversions, "resource", None)
    assert inversions.peak_memory_mb(cpu) == 0


@pytest.mark.parametrize("options", [{"snapshots": -1}, {"frames": 1}])
def test_impossible_options(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"callbacks\.results"):
        InversionResults(**options)
