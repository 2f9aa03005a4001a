"""This project's own files, and the way from layout to layout and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from i2i_lightning.checkpoints import (
    load_style_discriminator,
    load_style_generator,
    save_style_discriminator,
    save_style_generator,
)
from i2i_lightning.checkpoints.seal import seal
from i2i_lightning.checkpoints.style import rosinality
from i2i_lightning.checkpoints.style.export import write_rosinality
from i2i_lightning.checkpoints.style.load import LoadedStyle, describe_style, find_style, open_style
from i2i_lightning.checkpoints.style.native import HEADER
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError
from tests.checkpoints.style import peers
from tests.checkpoints.style.test_importers import image, same


@pytest.mark.parametrize("make", [peers.stylegan2, peers.stylegan1])
def test_safetensors(tmp_path: Path, make: type[StyleGenerator]) -> None:
    generator = make(16, label_dim=2)
    path = tmp_path / "g.safetensors"
    save_style_generator(path, generator, {"command": "i2i-train method=stylegan2", "kimg": 25.0})
    found = open_style(path)
    loaded, known = found.generator()
    same(loaded, generator)
    assert loaded.config == generator.config
    assert loaded.fingerprint() == generator.fingerprint()
    assert known.provenance == {"command": "i2i-train method=stylegan2", "kimg": 25.0}
    with safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    assert header["config"] == generator.config
    first = path.read_bytes()
    save_style_generator(path, generator, {"command": "i2i-train method=stylegan2", "kimg": 25.0})
    assert path.read_bytes() == first


def test_safetensors_of_a_discriminator(tmp_path: Path) -> None:
    judge = peers.discriminator(label_dim=2, mapping_layers=1, architecture="orig")
    path = tmp_path / "d.safetensors"
    save_style_discriminator(path, judge)
    loaded = load_style_discriminator(path)
    same(loaded, judge)
    # The label's mapping has a buffer that no file holds.
    assert not any(buffer.is_meta for buffer in loaded.buffers())
    with pytest.raises(UserError, match=r"holds a discriminator, and no generator$"):
        load_style_generator(path)


def node(target: str, **arguments: object) -> dict[str, object]:
    return {"_target_": f"i2i_lightning.networks.stylegan2.{target}", **arguments}


def checkpoint(path: Path, averaged: bool = True, last_too: bool = True) -> list[StyleGenerator]:
    """Write a checkpoint of ``method=stylegan2``, and return its averaged and its last generator."""
    average, last, judge = peers.stylegan2(), peers.stylegan2(), peers.discriminator()
    peers.fill(last, 9)
    networks = {"discriminator": judge} | ({"generator": last} if last_too else {})
    if averaged:
        networks["averages.generator"] = average
    state = {f"{name}.{key}": v for name, net in networks.items() for key, v in net.state_dict().items()}
    config = {
        "generator": node("generator.StyleGAN2Generator", **average.arguments),
        "discriminator": node("discriminator.StyleGAN2Discriminator", **judge.arguments),
        "truncation": 0.7,
    }
    held = {"state_dict": state | {"path_length_mean": torch.zeros([])}, "method_config": config}
    held |= {"epoch": 3, "global_step": 24, "images_seen": 96}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, path)
    return [average, last]


@pytest.mark.parametrize("name", ["last.ckpt", "best.pt"])
def test_checkpoint(tmp_path: Path, name: str) -> None:
    average, last = checkpoint(tmp_path / name)
    same(load_style_generator(tmp_path / name), average)
    same(load_style_generator(tmp_path / name, averaged=False), last)
    same(load_style_discriminator(tmp_path / name), peers.discriminator())
    known = open_style(tmp_path / name).generator()[1]
    assert known.averaged
    assert known.provenance == {"epoch": 3, "global_step": 24, "images_seen": 96}


def test_checkpoint_without_average(tmp_path: Path) -> None:
    _, last = checkpoint(tmp_path / "last.ckpt", averaged=False)
    same(load_style_generator(tmp_path / "last.ckpt"), last)


def test_checkpoint_of_the_average_alone(tmp_path: Path) -> None:
    average, _ = checkpoint(tmp_path / "last.ckpt", last_too=False)
    same(load_style_generator(tmp_path / "last.ckpt"), average)
    with pytest.raises(UserError, match=r"last.ckpt: not loaded: averaged=false: the file holds the average"):
        load_style_generator(tmp_path / "last.ckpt", averaged=False)


def test_a_sealed_checkpoint(tmp_path: Path) -> None:
    """A byte that no checksum of the archive covers is told by the seal."""
    path = tmp_path / "last.ckpt"
    average, _ = checkpoint(path)
    seal(path)
    same(load_style_generator(path), average)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] ^= 1 << 4  # a flag that nobody looks at
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum mismatch"):
        load_style_generator(path)


def test_run_folder(tmp_path: Path) -> None:
    average, _ = checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    same(load_style_generator(tmp_path / "run"), average)


def test_embedded() -> None:
    generator = load_style_generator("embedded")
    assert generator.size_px == 32
    assert describe_style(generator).startswith("StyleGAN2 generator, 32 px, 3 channels (z_dim=128")
    same(load_style_generator(), generator)
    same(load_style_generator(Path("embedded")), generator)
    assert open_style("embedded").generator()[1].averaged
    with pytest.raises(UserError, match=r"^embedded: not loaded: averaged=false: the file holds the average"):
        load_style_generator(averaged=False)


def test_names_are_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2I_WEIGHTS_DIR", str(tmp_path))
    for name in ("ffhq", Path("ffhq")):
        with pytest.raises(UserError, match="i2i-weights"):
            load_style_generator(name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "version 2"),
        ({"config": None}, "header is damaged"),
        ({"config": {"architecture": "stylegan9"}}, "architecture=stylegan9"),
        ({"config": {"architecture": "stylegan2", "size_px": 1 << 40}}, "size_px="),
        (
            {"config": {"architecture": "stylegan2", "size_px": 16, "mapping_layers": 10**6}},
            "mapping_layers=",
        ),
        ({"config": {"architecture": "stylegan2", "size_px": 16, "shoes": 2}}, "shoes"),
        ({"config": {"architecture": "stylegan2", "size_px": 16, "z_dim": [[1]]}}, "a list for z_dim"),
        (
            {
                "config": {
                    "architecture": "stylegan2",
                    "size_px": 16,
                    "z_dim": 12,
                    "w_dim": 12,
                    "mapping_layers": 3,
                }
            },
            "the network wants",
        ),
        ({"config": {"architecture": "stylegan2", "size_px": 17}}, "power of two"),
    ],
)
def test_a_forged_header(tmp_path: Path, change: dict[str, object], told: str) -> None:
    generator = peers.stylegan2()
    header = {"version": 1, "role": "generator", "config": generator.config} | change
    path = tmp_path / "g.safetensors"
    save_file(generator.state_dict(), path, {HEADER: json.dumps(header)})
    with pytest.raises(UserError) as caught:
        load_style_generator(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_find_leaves_other_files_to_others(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"nonsense")
    assert find_style(tmp_path / "x.pth") is None
    (tmp_path / "x.pkl").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no pickle"):
        find_style(tmp_path / "x.pkl")


# -------------------- from layout to layout


@pytest.mark.parametrize("label_dim", [0, 3])
@pytest.mark.parametrize("size_px", [32, 64, 128, 256, 512, 1024])
def test_there_and_back(tmp_path: Path, size_px: int, label_dim: int) -> None:
    """NVIDIA's file, rosinality's, NVIDIA's again: no key is missed, no bit of a weight or image changes."""
    base = max(64, 2 * size_px)
    generator = peers.stylegan2(size_px, channel_base=base, channel_max=4, label_dim=label_dim)
    judge = peers.discriminator(size_px, channel_base=base, channel_max=4, label_dim=label_dim)
    pickled = peers.write_nvidia(tmp_path / "g.pkl", generator, judge)
    network, loaded = open_style(pickled).generator()
    same(network, generator)
    expected = image(generator)
    converted = tmp_path / "g.pt"
    if label_dim:
        assert torch.equal(image(network), expected)
        with pytest.raises(UserError, match=f"no labels \\(label_dim={label_dim}\\)"):
            write_rosinality(loaded, None, converted, "g.pkl")
        return
    written = write_rosinality(loaded, load_style_discriminator(pickled), converted, "g.pkl")
    assert any("table of channels" in note for note in written.notes)
    held = torch.load(converted, weights_only=True)
    theirs = peers.RosinalityGenerator(size_px, 12, 3, peers.widths(size_px, base, 4))
    theirs.load_state_dict(held["g_ema"], strict=True)
    assert list(held["g_ema"]) == list(theirs.state_dict())
    judge_there = peers.RosinalityDiscriminator(size_px, peers.widths(size_px, base, 4))
    judge_there.load_state_dict(held["d"], strict=True)
    assert list(held["d"]) == list(judge_there.state_dict())
    back = load_style_generator(converted)
    same(back, generator)
    assert torch.equal(image(back), expected)
    same(load_style_discriminator(converted), judge)
    again = peers.write_nvidia(tmp_path / "h.pkl", back, judge)  # type: ignore[arg-type]
    same(load_style_generator(again), generator)


@pytest.mark.parametrize(("base", "multiplier"), [(16384, 1), (32768, 2)])
def test_published_channels(tmp_path: Path, base: int, multiplier: int) -> None:
    latent = {"z_dim": 512, "w_dim": 512, "mapping_layers": 8}
    generator = StyleGAN2Generator(64, **latent, channel_base=base, channel_max=512)
    _, notes = rosinality.layout(generator, None, "x", averaged=True)
    assert notes == [f"loads there with size=64 channel_multiplier={multiplier}"]
    judge = peers.discriminator(64, channel_base=base, channel_max=512)
    _, notes = rosinality.layout(generator, judge, "x", averaged=True)
    assert notes[1:] == ["with the discriminator"]
    judge = peers.discriminator(64, channel_base=49152 - base, channel_max=512)
    _, notes = rosinality.layout(generator, judge, "x", averaged=True)
    assert notes[2:] == ["to load the discriminator there, change its table of channels"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"z_dim": 256, "w_dim": 256}, "latent from 512 to 256"),
        ({"mapping_layers": 2}, "n_mlp from 8 to 2"),
        ({"channels": 1}, "channels of the image from 3 to 1"),
        ({"channel_max": 256}, "the table of channels"),
        ({"channel_base": 8192}, "the table of channels"),
        ({"mapping_layers": 2, "channels": 4}, "n_mlp from 8 to 2, channels of the image from 3 to 4"),
    ],
)
def test_what_that_projects_scripts_fix(arguments: dict[str, int], told: str) -> None:
    settings = {"z_dim": 512, "w_dim": 512, "mapping_layers": 8, "channel_base": 16384, "channel_max": 512}
    generator = StyleGAN2Generator(32, **settings | arguments)
    _, notes = rosinality.layout(generator, None, "x", averaged=True)
    assert notes == [f"to load it there, change in that project's code: {told}"]


def test_layout_keeps_the_mapping_at_another_rate(tmp_path: Path) -> None:
    """The layout has 0.01 for everyone: weights are scaled, and the function stays."""
    generator = peers.stylegan2(lr_multiplier=0.1)
    with torch.no_grad():
        for name, value in generator.named_parameters():
            if name.startswith("mapping"):
                value.div_(10)
    write_rosinality(LoadedStyle(generator, "x"), None, tmp_path / "g.pt", "x")
    torch.testing.assert_close(image(load_style_generator(tmp_path / "g.pt")), image(generator))


def test_layout_tells_of_the_clamp() -> None:
    clamped = peers.stylegan2(conv_clamp=256.0)
    _, notes = rosinality.layout(clamped, None, "x", averaged=True)
    assert notes[-1] == "that project does not clamp activations to 256, as this network does"
    judge = peers.discriminator(conv_clamp=128.0)
    _, notes = rosinality.layout(clamped, judge, "x", averaged=True)
    assert notes[-1] == "that project does not clamp activations to 128, as this discriminator does"


@pytest.mark.parametrize(("group", "told"), [(8, "8 images"), (1 << 16, "the whole batch")])
def test_layout_tells_of_the_group(group: int, told: str) -> None:
    judge = peers.discriminator(mbstd_group_size=group)
    held, notes = rosinality.layout(peers.stylegan2(), judge, "x", averaged=True)
    assert "d" in held
    assert notes[-1] == f"that project's discriminator compares 4 images with each other, this one {told}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"mbstd_channels": 0}, "it has mbstd_channels=0, that project's 1"),
        ({"mbstd_channels": 2}, "it has mbstd_channels=2, that project's 1"),
        ({"architecture": "orig"}, "it has architecture=orig, that project's resnet"),
        ({"label_dim": 2, "mapping_layers": 1}, "it has label_dim=2, that project's 0"),
    ],
)
def test_layout_tells_of_a_discriminator_that_it_leaves_out(arguments: dict[str, Any], told: str) -> None:
    held, notes = rosinality.layout(peers.stylegan2(), peers.discriminator(**arguments), "x", averaged=True)
    assert "d" not in held
    assert notes[-1] == f"without the discriminator: {told}"


@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_no_average_does_not_come_back_as_one(tmp_path: Path, averaged: bool) -> None:
    generator = peers.stylegan2()
    loaded = LoadedStyle(generator, "x", averaged)
    notes = write_rosinality(loaded, None, tmp_path / "g.pt", "x").notes
    assert any("not known to be an average" in note for note in notes) is not averaged
    found = open_style(tmp_path / "g.pt")
    assert found.generator()[1].averaged is averaged
    if averaged:
        with pytest.raises(UserError, match="the file holds the average alone"):
            found.generator(averaged=False)
    else:
        same(found.generator(averaged=False)[0], generator)


@pytest.mark.parametrize(
    ("generator", "told"),
    [
        (lambda: peers.stylegan1(), "no generator but StyleGAN2's"),
        (lambda: peers.stylegan2(z_dim=8), "no z and w of two lengths"),
    ],
)
def test_layout_refuses_what_it_has_not(generator: type[StyleGenerator], told: str) -> None:
    with pytest.raises(UserError, match=told):
        rosinality.layout(generator(), None, "x", averaged=True)
