"""Which tests run where, and the fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

OPTIONS = {
    "slow": ("--slow", "takes more than a few seconds"),
    "ddp": ("--slow", "starts several processes"),
    "slurm": ("--slurm", "starts a SLURM of its own"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow and ddp")
    parser.addoption("--slurm", action="store_true", help="also run the tests marked slurm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (option, reason) in OPTIONS.items():
            if item.get_closest_marker(marker) and not config.getoption(option):
                item.add_marker(pytest.mark.skip(reason=f"{reason}; run with {option}"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("weights") and "I2I_TEST_WEIGHTS" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs I2I_TEST_WEIGHTS, a folder of downloaded weights"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real images, with ``facades/`` and ``horse2zebra_128/`` in it."""
    folder = os.environ.get("I2I_TEST_DATA")
    if not folder:
        pytest.skip("needs I2I_TEST_DATA, a folder with facades/ and horse2zebra_128/")
    return Path(folder)


@pytest.fixture(scope="session")
def facades(test_data: Path) -> Path:
    """The CMP facades: 256 x 512 px files, photo left, label map right, in train/, val/ and test/."""
    folder = test_data / "facades"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Root of the working tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def conf(checkout: Path) -> Path:
    """Folder of the config files."""
    return checkout / "conf"
