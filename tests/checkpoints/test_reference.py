"""Files in the reference's layout load without hints, compute the same, and go back bit for bit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.checkpoints import load_discriminator, load_generator, open_generator
from i2i_lightning.checkpoints.contents import read_contents
from i2i_lightning.checkpoints.export import write_reference, write_safetensors
from i2i_lightning.types import UserError

GENERATORS: list[tuple[str, dict[str, Any], int]] = [
    ("unet", {"downs": 8}, 256),
    ("unet", {"downs": 7, "into": 1}, 128),
    ("unet", {"downs": 7, "into": 4, "out": 4}, 128),
    ("unet", {"downs": 5, "base": 4}, 32),
    ("unet", {"downs": 6, "base": 4, "norm": "instance", "dropout": False}, 64),
    ("unet", {"downs": 5, "base": 3, "norm": "none", "dropout": False}, 64),
    ("resnet", {"blocks": 9}, 32),
    ("resnet", {"blocks": 6, "norm": "batch"}, 32),
    ("resnet", {"blocks": 9, "norm": "batch", "dropout": True, "into": 1, "out": 1}, 32),
    ("resnet", {"blocks": 6, "dropout": True, "into": 4, "out": 3}, 32),
    ("resnet", {"blocks": 2, "norm": "none"}, 32),
    ("resnet", {"blocks": 0}, 32),
]
DISCRIMINATORS: list[tuple[str, dict[str, Any]]] = [
    ("patchgan", {}),
    ("patchgan", {"halvings": 1, "norm": "instance", "into": 3}),
    ("patchgan", {"halvings": 5, "norm": "none", "into": 2}),
    ("patchgan", {"norm": "instance_2018", "sigmoid": True}),
    ("pixelgan", {}),
    ("pixelgan", {"norm": "instance", "into": 4}),
]


def same_state(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, key
        assert torch.equal(ours[key], value), key


def back(path: Path, folder: Path) -> dict[str, Tensor]:
    """Convert the one network in ``path`` to the reference's layout and read it as the reference does."""
    (network,) = read_contents(path).networks
    write_reference(network, folder / "back.pth", str(path))
    state: dict[str, Tensor] = torch.load(folder / "back.pth", weights_only=True)
    return state


@pytest.mark.parametrize(("kind", "options", "size"), GENERATORS, ids=str)
def test_a_generator_computes_the_same_and_goes_back_bit_for_bit(
    reference: SimpleNamespace, tmp_path: Path, kind: str, options: dict[str, Any], size: int
) -> None:
    theirs = reference.trained(getattr(reference, kind)(**options))
    path = tmp_path / "latest_net_G.pth"
    torch.save(theirs.state_dict(), path)
    same_state(back(path, tmp_path), theirs.state_dict())

    loaded = open_generator(path)
    assert (loaded.source, loaded.directions, loaded.test_mode) == ("reference", ("ab",), "train")
    assert loaded.input.channels == options.get("into", 3)
    assert loaded.output.channels == options.get("out", 3)
    ours = loaded.network.double()
    theirs.double()
    x = torch.rand(2, options.get("into", 3), size, size, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=0, atol=1e-10)
        ours.train()
        theirs.train()
        outputs = []
        for network in (ours, theirs):
            torch.manual_seed(1)  # dropout draws in the order of the layers, so its place shows
            outputs.append(network(x))
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)
        assert outputs[0].std() > 0.05


@pytest.mark.parametrize(("kind", "options"), DISCRIMINATORS, ids=str)
def test_a_discriminator_computes_the_same_and_goes_back_bit_for_bit(
    reference: SimpleNamespace, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    theirs = reference.trained(getattr(reference, kind)(**options))
    path = tmp_path / "latest_net_D.pth"
    torch.save(theirs.state_dict(), path)
    kept = theirs.state_dict()
    if options.get("norm") == "instance_2018":
        kept = {key: value for key, value in kept.items() if key.endswith((".weight", ".bias"))}
    same_state(back(path, tmp_path), kept)
    ours = load_discriminator(path).double().train()
    theirs.double().train()
    x = torch.rand(2, options.get("into", 6), 128, 128, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        logits = ours(x).sigmoid() if options.get("sigmoid") else ours(x)
        torch.testing.assert_close(logits, theirs(x), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_published_u_net_goes_through_float32_files_and_safetensors(
    reference: SimpleNamespace, tmp_path: Path
) -> None:
    theirs = reference.trained(reference.unet(base=64))
    path = tmp_path / "latest_net_G.pth"
    torch.save(theirs.state_dict(), path)
    assert len(theirs.state_dict()) == 82
    (network,) = read_contents(path).networks
    write_safetensors(network, tmp_path / "g.safetensors", str(path))
    same_state(back(tmp_path / "g.safetensors", tmp_path), theirs.state_dict())
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    ours = load_generator(tmp_path / "g.safetensors")
    assert sum(p.numel() for p in ours.parameters()) == 54_413_955
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=0, atol=1e-5)


def test_what_is_inferred_and_what_is_assumed(reference: SimpleNamespace, tmp_path: Path) -> None:
    for options, dropout in (({}, "reference"), ({"norm": "instance"}, "none"), ({"norm": "none"}, "none")):
        torch.save(reference.unet(downs=6, base=3, **options).state_dict(), tmp_path / "u.pth")
        assert open_generator(tmp_path / "u.pth").architecture == {
            "_target_": "i2i_lightning.networks.unet.UNet",
            "in_channels": 3,
            "out_channels": 3,
            "num_downs": 6,
            "base_channels": 3,
            "norm": options.get("norm", "batch"),
            "dropout": dropout,
            "z_channels": 0,
            "skips": True,
        }
    for hint, placement in ((False, "none"), ("none", "none"), ("paper", "paper"), (True, "reference")):
        assert open_generator(tmp_path / "u.pth", dropout=hint).architecture["dropout"] == placement
    with pytest.raises(UserError, match="dropout=maybe"):
        open_generator(tmp_path / "u.pth", dropout="maybe")
    torch.save(reference.resnet(dropout=True).state_dict(), tmp_path / "r.pth")
    assert open_generator(tmp_path / "r.pth").architecture["dropout"] is True
    assert open_generator(tmp_path / "r.pth", dropout=False).architecture["dropout"] is False


def test_one_to_two_channels_are_lightness_to_chroma(reference: SimpleNamespace, tmp_path: Path) -> None:
    torch.save(reference.unet(1, 2, downs=5, base=2).state_dict(), tmp_path / "color.pth")
    loaded = open_generator(tmp_path / "color.pth")
    assert (loaded.input.kind, loaded.output.kind) == ("lightness", "chroma")
    torch.save(reference.unet(downs=5, base=2).state_dict(), tmp_path / "rgb.pth")
    loaded = open_generator(tmp_path / "rgb.pth")
    assert (loaded.input.kind, loaded.output.kind, loaded.input.convert) == ("image", "image", "match")


# -------------------- eras


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_stripped(reference: SimpleNamespace, tmp_path: Path, prefix: str) -> None:
    theirs = reference.trained(reference.unet(downs=5, base=2)).state_dict()
    torch.save({f"{prefix}{key}": value for key, value in theirs.items()}, tmp_path / "g.pth")
    same_state(back(tmp_path / "g.pth", tmp_path), theirs)
    inside = {
        key.replace("model.model.1.", "model.model._orig_mod.1."): value for key, value in theirs.items()
    }
    torch.save(inside, tmp_path / "g.pth")
    same_state(back(tmp_path / "g.pth", tmp_path), theirs)


def test_instance_statistics_of_2018_are_dropped(reference: SimpleNamespace, tmp_path: Path) -> None:
    theirs = reference.trained(reference.resnet(blocks=2, norm="instance_2018"))
    assert any("running_mean" in key for key in theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "g.pth")
    ours = load_generator(tmp_path / "g.pth")
    assert not list(ours.buffers())
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():  # in training mode they took each image's own statistics, then as now
        torch.testing.assert_close(ours(x), theirs.train()(x), rtol=0, atol=1e-5)
    assert all(key.endswith((".weight", ".bias")) for key in back(tmp_path / "g.pth", tmp_path))


def test_batches_not_counted_before_torch_0_4_are_none(reference: SimpleNamespace, tmp_path: Path) -> None:
    theirs = reference.trained(reference.unet(downs=5, base=2)).state_dict()
    old = {key: value for key, value in theirs.items() if "num_batches" not in key}
    torch.save(old, tmp_path / "g.pth", _use_new_zipfile_serialization=False)
    filled = back(tmp_path / "g.pth", tmp_path)
    assert list(filled) == list(theirs)
    assert all(filled[key].item() == 0 for key in theirs if "num_batches" in key)
    assert all(torch.equal(filled[key], value) for key, value in old.items())


class Tensor2017:
    """Pickles a tensor as torch 0.3 did, when tensors knew nothing of gradients."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        storage = self.tensor._typed_storage()
        return torch._utils._rebuild_tensor, (storage, 0, tuple(self.tensor.shape), self.tensor.stride())


def test_tensors_as_torch_0_3_wrote_them(reference: SimpleNamespace, tmp_path: Path) -> None:
    theirs = reference.trained(reference.unet(downs=5, base=2)).state_dict()
    old = OrderedDict((key, Tensor2017(value)) for key, value in theirs.items() if "num_batches" not in key)
    torch.save(old, tmp_path / "latest_net_G.pth", _use_new_zipfile_serialization=False)
    converted = back(tmp_path / "latest_net_G.pth", tmp_path)
    assert list(converted) == list(theirs)
    assert all(torch.equal(converted[key], theirs[key]) for key in old)


def test_metadata_other_precisions_and_a_wrapping_dict_do_no_harm(
    reference: SimpleNamespace, tmp_path: Path
) -> None:
    state = reference.trained(reference.resnet(blocks=1)).state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    torch.save({"state_dict": state}, tmp_path / "g.pth")
    same_state(back(tmp_path / "g.pth", tmp_path), state)
    half = {key: value.half() for key, value in state.items()}
    torch.save(half, tmp_path / "h.pth")
    same_state(back(tmp_path / "h.pth", tmp_path), half)
    assert load_generator(tmp_path / "h.pth")(torch.zeros(1, 3, 16, 16)).dtype == torch.float32


def test_loading_leaves_the_random_state(reference: SimpleNamespace, tmp_path: Path) -> None:
    torch.save(reference.unet(downs=5, base=2).state_dict(), tmp_path / "g.pth")
    before = torch.get_rng_state()
    load_generator(tmp_path / "g.pth")
    assert torch.equal(torch.get_rng_state(), before)


# -------------------- directions


def test_names_tell_the_direction(reference: SimpleNamespace, tmp_path: Path) -> None:
    for seed, name in enumerate(("G_A", "G_B", "D_A", "D_B")):
        maker = reference.resnet if name[0] == "G" else reference.patchgan
        network = reference.trained(
            maker(into=3, norm="instance", **({"blocks": 1} if name[0] == "G" else {})), seed
        )
        torch.save(network.state_dict(), tmp_path / f"latest_net_{name}.pth")
        torch.save(network.state_dict(), tmp_path / f"5_net_{name}.pth")
    assert open_generator(tmp_path / "latest_net_G_B.pth").direction == "ba"
    with pytest.raises(UserError, match=r"direction=ab: .*holds ba alone"):
        open_generator(tmp_path / "latest_net_G_B.pth", direction="ab")
    assert open_generator(tmp_path).directions == ("ab", "ba")
    x = torch.rand(1, 3, 16, 16)
    for direction, name in (("ab", "G_A"), ("ba", "G_B")):
        expected = load_generator(tmp_path / f"latest_net_{name}.pth")(x)
        assert torch.equal(load_generator(tmp_path, direction=direction)(x), expected)
    contents = {network.name: network.direction for network in read_contents(tmp_path).networks}
    assert contents == {
        "discriminator_b": "ab",
        "discriminator_a": "ba",
        "generator_ab": "ab",
        "generator_ba": "ba",
    }
    (tmp_path / "latest_net_G_A.pth").unlink()
    torch.save(reference.patchgan().state_dict(), tmp_path / "latest_net_G_A.pth")
    with pytest.raises(UserError, match="name is that of a generator, but it holds a PatchGAN"):
        open_generator(tmp_path / "latest_net_G_A.pth")


def test_a_folder_without_latest_or_without_files_says_so(reference: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no latest_net_G\.pth or the like"):
        open_generator(tmp_path)
    state = reference.resnet(blocks=1).state_dict()
    torch.save(state, tmp_path / "5_net_G.pth")
    assert open_generator(tmp_path).direction == "ab"
    torch.save(state, tmp_path / "10_net_G.pth")
    with pytest.raises(UserError, match="10, 5 and no latest"):
        open_generator(tmp_path)


# -------------------- what is not one of these networks


def spoilt(reference: SimpleNamespace, how: str) -> dict[str, Any]:
    state: dict[str, Any] = dict(reference.resnet(blocks=2, norm="batch").state_dict())
    if how == "antialiased":
        state["model.6.filt"] = torch.ones(8, 1, 3, 3)
    elif how == "a layer short":
        del state["model.4.weight"]
    elif how == "another width":
        state["model.7.weight"] = torch.zeros(16, 7, 3, 3)
    elif how == "a head short":
        del state["model.19.weight"], state["model.19.bias"]
    elif how == "not a kernel":
        state["model.1.weight"] = torch.zeros(4)
    elif how == "foreign":
        return {"conv.weight": torch.zeros(1), "conv.bias": torch.zeros(1)}
    elif how == "not tensors":
        return {"epoch": 3, "model": state}
    elif how == "empty":
        return {}
    elif how == "twice":
        return state | {"module.model.1.weight": state["model.1.weight"]}
    elif how == "sparse":
        state["model.1.weight"] = state["model.1.weight"].to_sparse()
    return state


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("antialiased", r"model\.6\.filt is not part of .* ResNet with 2 blocks"),
        ("a layer short", r"downs\.0\.conv\.weight is missing"),
        ("another width", r"downs\.1\.conv\.weight has shape \(16, 7, 3, 3\) instead of"),
        ("a head short", "layers of it are missing"),
        ("not a kernel", "layers of it are missing"),
        ("foreign", r"not known here \(conv\.weight, conv\.bias"),
        ("not tensors", "'epoch' is of type int"),
        ("empty", "no weights in it"),
        ("twice", r"model\.1\.weight twice"),
        ("sparse", "not a dense tensor"),
    ],
)
def test_other_networks_are_refused_in_one_message(
    reference: SimpleNamespace, tmp_path: Path, how: str, says: str
) -> None:
    torch.save(spoilt(reference, how), tmp_path / "g.pth")
    with pytest.raises(UserError, match=says) as caught:
        load_generator(tmp_path / "g.pth")
    assert str(tmp_path / "g.pth") in str(caught.value)
    assert str(caught.value).count("\n") <= 2


def test_generators_and_discriminators_are_not_mixed_up(reference: SimpleNamespace, tmp_path: Path) -> None:
    torch.save(reference.patchgan().state_dict(), tmp_path / "a.pth")
    torch.save(reference.resnet(blocks=1).state_dict(), tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"PatchGAN discriminator.*and no generator\n.*load_discriminator"):
        load_generator(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"ResNet generator.*and no discriminator\n.*load_generator"):
        load_discriminator(tmp_path / "b.pth")


def test_bare_weights_under_our_names_load_too(tmp_path: Path) -> None:
    from i2i_lightning.networks.patchgan import PatchGAN, PixelGAN
    from i2i_lightning.networks.resnet import ResNetGenerator
    from i2i_lightning.networks.unet import UNet

    networks: list[nn.Module] = [
        UNet(3, 1, num_downs=2, base_channels=2),
        ResNetGenerator(1, 3, 4, 3, upsample="resize"),
        PatchGAN(3, 4, 2, norm="none", spectral_norm=True),
        PixelGAN(3, 4),
    ]
    for network in networks:
        torch.save(network.state_dict(), tmp_path / "bare.pth")
        load = load_discriminator if "GAN" in type(network).__name__ else load_generator
        loaded = load(tmp_path / "bare.pth")
        assert type(loaded) is type(network)
        same_state(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize("odd", ["resize", "spectral", "z"])
def test_what_the_reference_has_not_is_not_written(tmp_path: Path, odd: str) -> None:
    from i2i_lightning.checkpoints.contents import SavedNetwork

    target, options = {
        "resize": ("resnet.ResNetGenerator", {"in_channels": 3, "out_channels": 3, "upsample": "resize"}),
        "spectral": ("patchgan.PatchGAN", {"in_channels": 3, "spectral_norm": True}),
        "z": ("unet.UNet", {"in_channels": 3, "out_channels": 3, "z_channels": 4, "num_downs": 3}),
    }[odd]
    architecture = {"_target_": f"i2i_lightning.networks.{target}", "base_channels": 2, **options}
    from i2i_lightning.checkpoints.architecture import network_class

    network = network_class(architecture, "x")(**{k: v for k, v in architecture.items() if k != "_target_"})
    name = "discriminator" if odd == "spectral" else "generator"
    saved = SavedNetwork(name, architecture, network.state_dict())
    with pytest.raises(UserError, match="the reference project has no network with"):
        write_reference(saved, tmp_path / "g.pth", "x.ckpt")
    assert not list(tmp_path.iterdir())
