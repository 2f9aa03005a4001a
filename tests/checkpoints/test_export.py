"""Exported programs compute what the network computes, at sizes and batches other than those of export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.checkpoints import export
from i2i_lightning.checkpoints.contents import SavedNetwork
from i2i_lightning.checkpoints.export import deployable, write_onnx, write_torchscript
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import ImageFormat, UserError

UNET = {"_target_": "i2i_lightning.networks.unet.UNet", "in_channels": 3, "out_channels": 3, "num_downs": 3}
RESNET = {"_target_": "i2i_lightning.networks.resnet.ResNetGenerator", "in_channels": 1, "out_channels": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet batch": UNET | {"base_channels": 4, "dropout": "paper"},
    "unet instance": UNET | {"base_channels": 4, "norm": "instance"},
    "unet none z": UNET | {"base_channels": 4, "norm": "none", "z_channels": 2},
    "resnet instance": RESNET | {"base_channels": 4, "num_blocks": 2, "dropout": True},
    "resnet batch resize": RESNET
    | {"base_channels": 4, "num_blocks": 1, "norm": "batch", "upsample": "resize"},
}


def make(name: str, test_mode: Any) -> tuple[nn.Module, SavedNetwork]:
    """Return a network with random weights and statistics, and how a file would hold it."""
    architecture = NETWORKS[name]
    torch.manual_seed(0)
    maker = UNet if "unet" in name else ResNetGenerator
    arguments = {key: value for key, value in architecture.items() if key != "_target_"}
    network = maker(**arguments, init_gain=0.2)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "norm.bias")):
            value.normal_(0, 0.3)
    formats = {"input": ImageFormat("image", architecture["in_channels"], dtype="uint16")}
    formats["output"] = ImageFormat("image", architecture["out_channels"])
    saved = SavedNetwork(
        "generator_ba",
        architecture,
        dict(network.state_dict()),
        direction="ba",
        test_mode=test_mode,
        **formats,
    )
    return network, saved


def inputs(network: nn.Module, saved: SavedNetwork) -> tuple[Tensor, ...]:
    """Three images of a size that no export used."""
    unit = int(network.size_multiple)  # type: ignore[arg-type]
    torch.manual_seed(1)
    image = torch.rand(3, saved.architecture["in_channels"], 7 * unit, 5 * unit) * 2 - 1
    return (image, torch.randn(3, saved.z_dim)) if saved.z_dim else (image,)


@torch.no_grad()
def one_by_one(network: nn.Module, saved: SavedNetwork, given: tuple[Tensor, ...]) -> Tensor:
    """Translate image by image as test mode says, without dropout; written apart from the package's own."""
    network = copy.deepcopy(network).train(saved.test_mode == "train")
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return torch.cat([network(*(value[n : n + 1] for value in given)) for n in range(len(given[0]))])


@pytest.mark.parametrize("test_mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
class TestPrograms:
    def test_eager(self, name: str, test_mode: str) -> None:
        network, saved = make(name, test_mode)
        before = copy.deepcopy(network.state_dict())
        given = inputs(network, saved)
        program = deployable(network, saved.test_mode)
        expected = one_by_one(network, saved, given)
        torch.testing.assert_close(program(*given), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.05
        assert network.training
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    def test_torchscript(self, name: str, test_mode: str, tmp_path: Path) -> None:
        network, saved = make(name, test_mode)
        written = write_torchscript(saved, tmp_path / "g.pt", "runs/best.ckpt")
        assert written.bytes == (tmp_path / "g.pt").stat().st_size
        extra = {"metadata.json": ""}
        program = torch.jit.load(tmp_path / "g.pt", _extra_files=extra)
        given = inputs(network, saved)
        torch.testing.assert_close(program(*given), one_by_one(network, saved, given), rtol=0, atol=1e-4)
        check_description(json.loads(extra["metadata.json"]), saved)

    def test_onnx(self, name: str, test_mode: str, tmp_path: Path) -> None:
        onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        network, saved = make(name, test_mode)
        write_onnx(saved, tmp_path / "g.onnx", "runs/best.ckpt")
        assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]
        session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
        given = inputs(network, saved)
        names = [entry.name for entry in session.get_inputs()]
        assert names == ["image", "z"][: len(given)]
        assert session.get_inputs()[0].shape == [
            "batch",
            saved.architecture["in_channels"],
            "height",
            "width",
        ]
        (output,) = session.run(
            ["output"], {key: value.numpy() for key, value in zip(names, given, strict=True)}
        )
        expected = one_by_one(network, saved, given)
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=0, atol=1e-4)
        model = onnx.load(str(tmp_path / "g.onnx"))
        assert model.producer_name == "i2i_lightning"
        assert {entry.op_type for entry in model.graph.node}.isdisjoint(
            {"Dropout", "RandomNormal", "Loop", "If"}
        )
        props = {prop.key: prop.value for prop in model.metadata_props}
        plain = {"producer", "made_from", "direction", "layout", "channel_order", "dtype", "normalisation"}
        plain |= {"test_mode", "norms", "dropout"}
        check_description(
            {key: value if key in plain else json.loads(value) for key, value in props.items()}, saved
        )
        assert props["opset"] == str(export.OPSET)


def check_description(said: dict[str, Any], saved: SavedNetwork) -> None:
    assert said["layout"] == "NCHW"
    assert said["channel_order"] == ("grey" if saved.architecture["in_channels"] == 1 else "RGB")
    assert (said["range"], said["mean"], said["std"], said["dtype"]) == ([-1.0, 1.0], 0.5, 0.5, "float32")
    assert saved.input is not None
    assert ImageFormat.from_dict(said["input"]) == saved.input
    assert ImageFormat.from_dict(said["output"]) == saved.output
    assert said["size_multiple"] == (8 if "UNet" in saved.architecture["_target_"] else 4)
    assert (said["direction"], said["test_mode"], said["z_dim"]) == ("ba", saved.test_mode, saved.z_dim)
    assert (said["dropout"], said["made_from"]) == ("off", "best.ckpt")
    if saved.architecture.get("norm", "batch") == "batch" and "UNet" in saved.architecture["_target_"]:
        assert said["norms"].startswith("each image" if saved.test_mode == "train" else "running")


def test_what_is_printed_says_that_dropout_is_off(tmp_path: Path) -> None:
    notes = write_torchscript(make("unet batch", "train")[1], tmp_path / "g.pt", "x").notes
    assert "multiples of 8 px" in notes[0]
    assert "dropout off, which test mode train would have on" in notes[0]
    assert "largest difference" in notes[1]
    notes = write_torchscript(make("unet instance", "eval")[1], tmp_path / "g.pt", "x").notes
    assert notes[0].endswith("dropout off")


@pytest.mark.parametrize("write", [write_torchscript, write_onnx])
def test_a_program_that_disagrees_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Any
) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "g").write_text("earlier")
    monkeypatch.setattr(export.ImageNorm, "forward", lambda self, x: x * 1.01)
    with pytest.raises(UserError, match=r"not written: the exported program differs from the network by"):
        write(make("unet batch", "train")[1], tmp_path / "g", "x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("g", "earlier")]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime: pip install 'i2i_lightning\[export\]'"):
        write_onnx(make("unet batch", "train")[1], tmp_path / "g.onnx", "x")


def test_a_discriminator_is_no_program(tmp_path: Path) -> None:
    architecture = {
        "_target_": "i2i_lightning.networks.patchgan.PatchGAN",
        "in_channels": 3,
        "base_channels": 2,
    }
    saved = SavedNetwork("discriminator", architecture, dict(PatchGAN(3, 2).state_dict()))
    with pytest.raises(UserError, match="a discriminator is of no use as a program"):
        write_torchscript(saved, tmp_path / "d.pt", "x")


def test_a_full_disk_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "g.pt").write_text("earlier")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_torchscript(make("unet instance", "train")[1], tmp_path / "g.pt", "x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("g.pt", "earlier")]
