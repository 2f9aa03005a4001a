"""The wheel holds what a run needs, and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import i2i_lightning


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_package_and_configs(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = [
        path
        for path in (checkout / "i2i_lightning").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    for path in sources:
        assert path.relative_to(checkout).as_posix() in names
    for path in (checkout / "conf").rglob("*.yaml"):
        assert f"i2i_lightning/{path.relative_to(checkout).as_posix()}" in names
    roots = {name.split("/")[0] for name in names}
    assert roots == {"i2i_lightning", f"i2i_lightning-{i2i_lightning.__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]
    assert wheel.stat().st_size < 8 * 2**20


def test_metadata(wheel: Path) -> None:
    info = f"i2i_lightning-{i2i_lightning.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert metadata["Version"] == i2i_lightning.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert "i2i-train = i2i_lightning.commands.train:main" in scripts


@pytest.mark.slow
def test_installed_wheel_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "an empty folder"
    empty.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import sys, i2i_lightning.commands.train as t; print(t.__file__); sys.exit(t.APP.main())"
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.num_train=32", "data.num_val=2"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            *short,
            "data.num_test=4",
            "callbacks.toyfaces.report=false",
            "trainer=cpu",
        ],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    (page,) = empty.glob("outputs/pix2pix_toy/*/index.html")
    assert done.stdout.rstrip().endswith(f"Gallery: {page.relative_to(empty)}")
