"""``i2i-convert`` says what it read and wrote, and leaves nothing half-written."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from i2i_lightning.checkpoints import open_generator
from i2i_lightning.commands.convert import APP
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.types import ImageFormat


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of ours with a generator, its average and a discriminator."""
    torch.manual_seed(0)
    config = {
        "generator": {
            "_target_": "i2i_lightning.networks.resnet.ResNetGenerator",
            "in_channels": 3,
            "out_channels": 3,
            "base_channels": 4,
            "num_blocks": 1,
        },
        "discriminator": {
            "_target_": "i2i_lightning.networks.patchgan.PatchGAN",
            "in_channels": 6,
            "base_channels": 4,
        },
        "test_mode": "eval",
    }
    networks = {
        "generator": ResNetGenerator(3, 3, 4, 1),
        "averages.generator": ResNetGenerator(3, 3, 4, 1),
        "discriminator": PatchGAN(6, 4),
    }
    state = {f"{n}.{key}": value for n, net in networks.items() for key, value in net.state_dict().items()}
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "method_config": config}, path)
    return path


def weights(path: Path, averaged: bool = True) -> list[torch.Tensor]:
    return list(open_generator(path, averaged=averaged).network.state_dict().values())


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_there_and_back(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pth, tensors, again = tmp_path / "latest_net_G.pth", tmp_path / "g.safetensors", tmp_path / "g.ckpt"
    assert APP.main([f"checkpoint={tmp_path / 'run'}", f"output={pth}"]) == 0
    out = capsys.readouterr().out
    assert (
        "best.ckpt: a checkpoint of i2i_lightning\n  ResNet generator, 3 -> 3 channels (base_channels=4"
        in out
    )
    assert "moving average of the weights" in out
    assert "latest_net_G.pth: the layout of junyanz/pytorch-CycleGAN-and-pix2pix, 4" in out
    assert out.endswith(" KiB\n")
    assert "model.10.conv_block.5.weight" in torch.load(pth, weights_only=True)
    assert APP.main([f"checkpoint={pth}", f"output={tensors}"]) == 0
    assert APP.main([f"checkpoint={tensors}", f"output={again}"]) == 0
    assert same(weights(again), weights(checkpoint))
    assert open_generator(again).input == ImageFormat("image", 3, convert="match")

    last = tmp_path / "last.pth"
    assert APP.main([f"checkpoint={checkpoint}", f"output={last}", "averaged=false"]) == 0
    assert "last weights, not their average" in capsys.readouterr().out
    assert same(weights(last), weights(checkpoint, averaged=False))
    assert not same(weights(last), weights(pth))


def test_one_network_or_all(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = tmp_path / "latest_net_D.pth"
    assert APP.main([f"checkpoint={checkpoint}", f"output={judge}", "network=discriminator"]) == 0
    assert APP.main([f"checkpoint={judge}", f"output={tmp_path / 'd.safetensors'}"]) == 0
    assert "PatchGAN discriminator, 6 channels" in capsys.readouterr().out
    assert APP.main([f"checkpoint={checkpoint}", f"output={tmp_path / 'both.ckpt'}"]) == 0
    state = torch.load(tmp_path / "both.ckpt", weights_only=True)["state_dict"]
    assert {key.partition(".")[0] for key in state} == {"generator", "discriminator"}
    assert APP.main([f"checkpoint={judge}", f"output={tmp_path / 'x.pth'}", "network=generator"]) == 1
    assert "PatchGAN discriminator" in capsys.readouterr().err


def test_programs(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    for name, word in (("g.onnx", "ONNX"), ("g.pt", "TorchScript")):
        assert APP.main([f"checkpoint={checkpoint}", f"output={tmp_path / name}"]) == 0
        out = capsys.readouterr().out
        assert f"{name}: {word}, " in out
        assert "float32 NCHW in [-1, 1]" in out
        assert "largest difference from the network itself" in out
        assert APP.main([f"checkpoint={tmp_path / name}", f"output={tmp_path / 'back.pth'}"]) == 1
        assert f"this is {word}, an exported program" in capsys.readouterr().err


def test_what_is_there_stays_unless_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.pth"
    there.write_text("mine")
    assert APP.main([f"checkpoint={checkpoint}", f"output={there}"]) == 1
    assert "is there already; overwrite=true replaces it" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert APP.main([f"checkpoint={checkpoint}", f"output={there}", "overwrite=true"]) == 0
    assert same(weights(there), weights(checkpoint))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["output=g.pth"], "checkpoint: missing"),
        (["checkpoint=nowhere.pth", "output=g.pth"], "nowhere.pth: no such checkpoint file"),
        (["checkpoint=CHECKPOINT", "output=g.tar"], "output=g.tar: its suffix tells no format"),
        (["checkpoint=CHECKPOINT", "output=."], "output=.: a folder; give a file"),
        (["checkpoint=CHECKPOINT", "output=g.pth", "format=keras"], "format=keras"),
        (["checkpoint=CHECKPOINT", "output=g.pth", "direction=ba"], "holds ab alone; leave direction out"),
        (["checkpoint=CHECKPOINT", "output=g.pth", "networks=generator"], "Did you mean network"),
        (["checkpoint=CHECKPOINT", "output=g.pth", "dropout=maybe"], "dropout=maybe"),
        (["checkpoint=CHECKPOINT", "output=g.onnx", "network=discriminator"], "of no use as a program"),
        (["checkpoint=CHECKPOINT", "output=file/g.pth"], "file/g.pth: cannot be written"),
    ],
)
def test_slips_are_told_in_a_line(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "file").write_text("")
    assert APP.main([word.replace("CHECKPOINT", str(checkpoint)) for word in words]) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") <= 3
    assert "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["file"]


@contextmanager
def no_room_beyond(count: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``count`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["g.pth", "g.safetensors", "g.ckpt", "g.pt", "g.onnx"])
def test_no_room_is_one_line_and_leaves_the_earlier_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "g.onnx":
        pytest.importorskip("onnxruntime")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("earlier")
    with no_room_beyond(20_000):
        status = APP.main([f"checkpoint={checkpoint}", f"output={folder / name}", "overwrite=true"])
    assert status == 1
    err = capsys.readouterr().err
    assert f"{name}: cannot be written" in err
    assert err.count("\n") == 1
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "earlier")]


def test_a_folder_is_made(checkpoint: Path, tmp_path: Path) -> None:
    assert APP.main([f"checkpoint={checkpoint}", f"output={tmp_path / 'new' / 'er' / 'g.pth'}"]) == 0
    assert same(weights(tmp_path / "new" / "er" / "g.pth"), weights(checkpoint))
