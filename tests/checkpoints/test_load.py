"""Our own checkpoints and safetensors open with all they say of themselves; nothing that could run is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from i2i_lightning.checkpoints import LoadedGenerator, load_discriminator, load_generator, open_generator
from i2i_lightning.checkpoints.contents import HEADER, SavedNetwork, read_contents
from i2i_lightning.checkpoints.export import write_checkpoint, write_safetensors
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import ImageFormat, UserError

UNET = {
    "_target_": "i2i_lightning.networks.unet.UNet",
    "in_channels": 3,
    "out_channels": 5,
    "num_downs": 3,
    "base_channels": 2,
    "norm": "syncbatch",
    "dropout": "paper",
    "z_channels": 2,
    "init": "normal",
    "init_gain": 0.02,
}
PATCHGAN = {"_target_": "i2i_lightning.networks.patchgan.PatchGAN", "in_channels": 8, "base_channels": 2}
LABELS = ImageFormat("labels", 5, palette=tuple((i, i, i) for i in range(5)))
PHOTO = ImageFormat("image", 3, dtype="uint16")


def prefixed(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in state.items()}


def built(seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(3, 5, num_downs=3, base_channels=2, dropout="paper", z_channels=2, init_gain=0.3)


def checkpoint_of_ours(path: Path, **changes: Any) -> Path:
    """Write a checkpoint as training does, with an average, and return its path."""
    torch.manual_seed(3)
    checkpoint: dict[str, Any] = {
        "epoch": 1,
        "state_dict": {
            **prefixed("generator", built(1).state_dict()),
            **prefixed("discriminator", PatchGAN(8, 2).state_dict()),
            **prefixed("averages.generator", built(2).state_dict()),
            "pool.images": torch.zeros(2, 3, 4, 4),
        },
        "method_config": {"generator": UNET, "discriminator": PATCHGAN, "test_mode": "eval", "z_dim": 2},
        "translation": {
            "directions": {
                "ab": {"generator": "generator", "input": PHOTO.to_dict(), "output": LABELS.to_dict()}
            },
            "test_mode": "eval",
            "z_dim": 2,
            "size_px": [16, 24],
        },
    }
    torch.save(checkpoint | changes, path)
    return path


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(torch.ones(1, 3, 8, 8), torch.ones(1, 2))
    return out


# -------------------- checkpoints of ours


def test_a_checkpoint_of_ours_tells_all(tmp_path: Path) -> None:
    loaded = open_generator(checkpoint_of_ours(tmp_path / "best.ckpt"))
    assert isinstance(loaded, LoadedGenerator)
    assert not loaded.network.training
    assert loaded.architecture == UNET | {"norm": "batch"}
    assert (loaded.input, loaded.output, loaded.size_px, loaded.z_dim) == (PHOTO, LABELS, (16, 24), 2)
    assert (loaded.test_mode, loaded.direction, loaded.directions) == ("eval", "ab", ("ab",))
    assert (loaded.source, loaded.averaged) == ("i2i_lightning", True)
    assert torch.equal(outputs(loaded.network), outputs(built(2).eval()))

    current = open_generator(tmp_path / "best.ckpt", averaged=False, test_mode="train", dropout=False)
    assert torch.equal(outputs(current.network), outputs(built(1).eval()))
    assert (current.averaged, current.test_mode) == (False, "train")
    assert current.architecture["dropout"] == "none"
    assert isinstance(load_discriminator(tmp_path / "best.ckpt", device="cpu"), PatchGAN)


def test_older_checkpoints_mean_plain_pictures(tmp_path: Path) -> None:
    loaded = open_generator(checkpoint_of_ours(tmp_path / "old.ckpt", translation=None))
    assert (loaded.input, loaded.output) == (ImageFormat("image", 3), ImageFormat("image", 5))
    assert (loaded.test_mode, loaded.size_px, loaded.directions) == ("eval", None, ("ab",))


def test_a_method_built_by_hand_has_no_config_and_is_inferred(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = ResNetGenerator(1, 3, 4, 2, norm="batch")
    state = prefixed("generator", generator.state_dict())
    torch.save({"state_dict": state, "method_config": None}, tmp_path / "hand.ckpt")
    loaded = open_generator(tmp_path / "hand.ckpt")
    assert loaded.architecture["num_blocks"] == 2
    assert loaded.input == ImageFormat("image", 1)
    foreign = prefixed("generator", nn.Linear(2, 2).state_dict())
    torch.save({"state_dict": foreign, "method_config": None}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="names no network of i2i_lightning"):
        load_generator(tmp_path / "foreign.ckpt")


def test_two_directions_are_told_apart(tmp_path: Path) -> None:
    config = {
        "_target_": "i2i_lightning.networks.resnet.ResNetGenerator",
        "base_channels": 2,
        "num_blocks": 1,
    }
    ab, ba = config | {"in_channels": 3, "out_channels": 1}, config | {"in_channels": 1, "out_channels": 3}
    judges = {"_target_": PATCHGAN["_target_"], "base_channels": 2}
    states = {
        "generator_ab": ResNetGenerator(3, 1, 2, 1),
        "generator_ba": ResNetGenerator(1, 3, 2, 1),
        "discriminator_a": PatchGAN(3, 2),
        "discriminator_b": PatchGAN(1, 2),
    }
    checkpoint = {
        "state_dict": {
            k: v for name, net in states.items() for k, v in prefixed(name, net.state_dict()).items()
        },
        "method_config": {
            "generator_ab": ab,
            "generator_ba": ba,
            "discriminator_a": judges | {"in_channels": 3},
            "discriminator_b": judges | {"in_channels": 1},
        },
    }
    torch.save(checkpoint, tmp_path / "c.ckpt")
    assert open_generator(tmp_path / "c.ckpt").directions == ("ab", "ba")
    assert open_generator(tmp_path / "c.ckpt", direction="ba").output.channels == 3
    for direction, channels in (("ab", 1), ("ba", 3)):
        judge = load_discriminator(tmp_path / "c.ckpt", direction=direction)
        assert isinstance(judge, PatchGAN)
        assert judge.in_channels == channels
    with pytest.raises(UserError, match="direction=a_to_b: give ab or ba"):
        open_generator(tmp_path / "c.ckpt", direction="a_to_b")


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        (UNET | {"_target_": "os.system"}, "names no network of i2i_lightning: 'os.system'"),
        (UNET | {"_target_": "i2i_lightning.checkpoints.io.write_beside"}, "names no network"),
        (UNET | {"_target_": "i2i_lightning.networks.unet.torch"}, "is not a network"),
        (UNET | {"_target_": "i2i_lightning.networks.unet.nn.Linear"}, "there is no network"),
        (UNET | {"_target_": "i2i_lightning.networks.future.Net"}, "no network .* in this version"),
        (UNET | {"command": "rm"}, "has no argument command in this version"),
        (UNET | {"init": {"_target_": "os.system"}}, "gives init a dict"),
        (UNET | {"base_channels": 10**9}, "not those of a network with base_channels=1000000000"),
        (UNET | {"num_downs": 10**9}, "num_downs=1000000000"),
        (UNET | {"num_downs": 4}, "not those of a U-Net generator"),
        (UNET | {"num_downs": "many"}, "cannot be built"),
        (UNET | {"norm": "exec"}, "norm=exec"),
        ("eval('1')", "names no network"),
        ({}, "names no network"),
    ],
)
def test_a_lying_description_is_refused(tmp_path: Path, generator: Any, says: str) -> None:
    path = checkpoint_of_ours(tmp_path / "c.ckpt", method_config={"generator": generator})
    with pytest.raises(UserError, match=says) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") <= 2


@pytest.mark.parametrize(
    "translation",
    [
        {"directions": {"ab": "generator"}},
        {"directions": {"up": {"generator": "generator"}}},
        {"directions": {"ab": {"generator": "generator", "input": {"kind": "sound", "channels": 3}}}},
        {"directions": {"ab": {"generator": "generator", "input": {"shape": 3}}}},
        {"directions": [1], "test_mode": "train"},
        {"test_mode": "both"},
        {"size_px": [1, 2, 3]},
    ],
)
def test_a_damaged_translation_entry_is_one_message(tmp_path: Path, translation: Any) -> None:
    path = checkpoint_of_ours(tmp_path / "c.ckpt", translation=translation)
    with pytest.raises(UserError, match=r"c\.ckpt"):
        load_generator(path)


# -------------------- safetensors


def saved(**changes: Any) -> SavedNetwork:
    architecture = UNET | {"norm": "batch"}
    fields: dict[str, Any] = {
        "name": "generator_ba",
        "architecture": architecture,
        "state": dict(built(1).state_dict()),
        "direction": "ba",
        "input": PHOTO,
        "output": LABELS,
        "test_mode": "eval",
        "size_px": (16, 24),
    }
    return SavedNetwork(**{**fields, **changes})


def test_safetensors_carry_all_that_a_checkpoint_says(tmp_path: Path) -> None:
    write_safetensors(saved(), tmp_path / "g.safetensors", "runs/best.ckpt")
    loaded = open_generator(tmp_path / "g.safetensors")
    assert loaded.architecture == UNET | {"norm": "batch"}
    assert (loaded.input, loaded.output, loaded.size_px, loaded.z_dim) == (PHOTO, LABELS, (16, 24), 2)
    assert (loaded.test_mode, loaded.direction, loaded.directions) == ("eval", "ba", ("ba",))
    assert (loaded.source, loaded.averaged) == ("safetensors", False)
    assert torch.equal(outputs(loaded.network), outputs(built(1).eval()))
    (again,) = read_contents(tmp_path / "g.safetensors").networks
    assert all(torch.equal(again.state[key], value) for key, value in built(1).state_dict().items())
    assert again.name == "generator_ba"
    renamed = (tmp_path / "g.safetensors").rename(tmp_path / "weights")
    assert open_generator(renamed).source == "safetensors"


def test_safetensors_without_our_header_are_inferred(reference: SimpleNamespace, tmp_path: Path) -> None:
    save_file(dict(reference.resnet(blocks=2).state_dict()), tmp_path / "g.safetensors")
    assert open_generator(tmp_path / "g.safetensors").architecture["num_blocks"] == 2


def described(tmp_path: Path, header: Any, state: dict[str, Tensor] | None = None) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(state or dict(built(1).state_dict()), tmp_path / "g.safetensors", {HEADER: text})
    return tmp_path / "g.safetensors"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{", "header is not one"),
        ("[" * 10_000, "header is not one"),
        ("[]", "header is not one"),
        ({"version": 99}, "version 99"),
        ({"version": 1}, "names no network"),
        (
            {"version": 1, "architecture": {"_target_": "builtins.eval"}, "name": "generator"},
            "names no network",
        ),
        ({"version": 1, "architecture": UNET | {"num_downs": 10**12}, "name": "generator"}, "num_downs="),
        ({"version": 1, "architecture": UNET | {"base_channels": 3}, "name": "generator"}, "instead of"),
        ({"version": 1, "architecture": UNET, "name": "__class__"}, "names a network '__class__'"),
        ({"version": 1, "architecture": UNET, "name": "generator", "direction": ".."}, "direction '..'"),
        ({"version": 1, "architecture": UNET, "name": "generator", "input": 3}, "not known here"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, header: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_generator(described(tmp_path, header))


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    for header in ({"a": tensor}, {"a": tensor | {"data_offsets": [0, 4]}}):
        text = json.dumps(header).encode()
        (tmp_path / "g.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
        with pytest.raises(UserError, match="not a whole safetensors file"):
            load_generator(tmp_path / "g.safetensors")
    (tmp_path / "g.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_generator(tmp_path / "g.safetensors")


# -------------------- files that would run code


class Bomb:
    """Unpickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


BOMBS = {
    "os.system": lambda marker: Bomb(os.system, f"touch {marker}"),
    "eval": lambda marker: Bomb(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Bomb(exec, f"open({str(marker)!r}, 'w')"),
    "path": lambda marker: Bomb(Path.touch, marker),
    "getattr": lambda marker: Bomb(getattr, Path, "cwd"),
    "whole network": lambda marker: nn.Sequential(nn.Conv2d(3, 4, 7)),
    "torch.load": lambda marker: Bomb(torch.load, str(marker)),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(
    "how", ["zip", "legacy", "plain pickle", "nested pickle", "named .safetensors", "in ours"]
)
def test_no_code_is_run(tmp_path: Path, bomb: str, how: str) -> None:
    marker = tmp_path / "ran"
    held: Any = {"model.1.weight": torch.zeros(4, 3, 7, 7), "bomb": BOMBS[bomb](marker)}
    path = tmp_path / "latest_net_G.pth"
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(held, protocol=2))
    elif how == "nested pickle":
        torch.save({"model.1.weight": torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, pickle.dumps(held) if name.endswith("data.pkl") else content)
            archive.writestr("latest_net_G/more.pkl", pickle.dumps(held))
    elif how == "named .safetensors":
        path = path.with_suffix(".safetensors")
        torch.save(held, path)
    elif how == "in ours":
        torch.save({"state_dict": {}, "method_config": {"generator": held["bomb"]}}, path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=how == "zip")
    for load in (load_generator, load_discriminator):
        with pytest.raises(UserError) as caught:
            load(path)
        text = str(caught.value)
        assert text.count("\n") <= 2
        assert str(path) in text
        assert not marker.exists()
        if how in ("zip", "legacy", "in ours"):
            assert "refused, it is not a plain file of tensors" in text
            assert ("torch.save(net.state_dict()" in text) == (bomb in ("whole network", "torch.load"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_exports_are_told_from_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4)), tmp_path / "g.pth")
    (tmp_path / "g.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    for name, kind in (("g.pth", "TorchScript"), ("g.onnx", "ONNX")):
        with pytest.raises(
            UserError, match=f"this is {kind}, an exported program that cannot be loaded back"
        ):
            load_generator(tmp_path / name)


# -------------------- files that are not whole


@pytest.mark.parametrize("kind", ["ours", "reference", "legacy", "safetensors"])
def test_a_truncated_file_is_one_line(reference: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("g.safetensors" if kind == "safetensors" else "g.pth")
    if kind == "ours":
        checkpoint_of_ours(path)
    elif kind == "safetensors":
        write_safetensors(saved(), path, "x")
    else:
        state = reference.resnet(blocks=1).state_dict()
        torch.save(state, path, _use_new_zipfile_serialization=kind == "reference")
    content = path.read_bytes()
    for cut in (0, 1, 9, len(content) // 3, len(content) - 10):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError) as caught:
            load_generator(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n", b"PK\x03\x04", b"\x80\x02", b"\x80", b"{}"])
def test_other_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"g\.pth: not a") as caught:
        load_generator(tmp_path / "g.pth")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth: no such checkpoint file"):
        load_generator(tmp_path / "nowhere.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list, not the weights of a network"):
        load_generator(tmp_path / "list.pth")


def test_a_written_checkpoint_reads_as_one_of_ours(reference: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("G_A", "G_B", "D_A", "D_B"):
        maker = reference.resnet if name[0] == "G" else reference.patchgan
        torch.save(maker(into=3).state_dict(), tmp_path / f"latest_net_{name}.pth")
    write_checkpoint(read_contents(tmp_path).networks, tmp_path / "all.ckpt", str(tmp_path))
    contents = read_contents(tmp_path / "all.ckpt")
    assert contents.source == "i2i_lightning"
    names = {network.name: network.direction for network in contents.networks}
    assert names == {
        "generator_ab": "ab",
        "generator_ba": "ba",
        "discriminator_b": "ab",
        "discriminator_a": "ba",
    }
    loaded = open_generator(tmp_path / "all.ckpt", direction="ba")
    assert loaded.input == ImageFormat("image", 3, convert="match")
