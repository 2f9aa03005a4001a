"""Training begins from files of every kind: what fits is filled and named, what does not is refused whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.checkpoints.contents import read_contents
from i2i_lightning.checkpoints.export import write_checkpoint, write_safetensors
from i2i_lightning.checkpoints.warm_start import warm_start
from i2i_lightning.methods.pix2pix import Pix2Pix, Pix2PixLoss
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.types import UserError


class TwoWays(nn.Module):
    """A method of two directions, as far as a warm start sees it."""

    directions: ClassVar[dict[str, str]] = {"ab": "generator_ab", "ba": "generator_ba"}

    def __init__(self) -> None:
        super().__init__()
        self.generator_ab = ResNetGenerator(3, 3, 4, 1)
        self.generator_ba = ResNetGenerator(3, 3, 4, 1)
        self.discriminator_a = PatchGAN(3, 4, norm="instance")
        self.discriminator_b = PatchGAN(3, 4, norm="instance")
        self.averages = nn.ModuleDict()


def pix2pix(generator: nn.Module | None = None, discriminator: nn.Module | None = None) -> Pix2Pix:
    adam = partial(torch.optim.Adam, lr=1e-3)
    generator = generator or UNet(3, 3, num_downs=5, base_channels=4)
    return Pix2Pix(generator, discriminator or PatchGAN(6, 4), Pix2PixLoss(), adam, ema_decay=0.9)


def store(network: nn.Module, path: Path) -> dict[str, Tensor]:
    torch.save(network.state_dict(), path)
    return dict(network.state_dict())


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True)
    )


def test_a_generator_alone(reference: SimpleNamespace, tmp_path: Path) -> None:
    theirs = store(reference.trained(reference.unet(downs=5, base=4)), tmp_path / "latest_net_G.pth")
    method = pix2pix()
    judge = copied(method.discriminator)
    line = warm_start(method, tmp_path / "latest_net_G.pth")
    assert line == (
        f"warm_start={tmp_path / 'latest_net_G.pth'}: filled generator; "
        "discriminator not in the file, so it starts anew"
    )
    assert same(dict(method.generator.state_dict()), theirs)
    assert same(dict(method.averages["generator"].state_dict()), theirs)
    assert same(dict(method.discriminator.state_dict()), judge)


def test_a_folder_fills_both(reference: SimpleNamespace, tmp_path: Path) -> None:
    generator = store(reference.trained(reference.unet(downs=5, base=4)), tmp_path / "latest_net_G.pth")
    judge = store(reference.trained(reference.patchgan()), tmp_path / "latest_net_D.pth")
    method = pix2pix()
    line = warm_start(method, tmp_path)
    assert line.endswith("filled discriminator, generator")
    assert same(dict(method.generator.state_dict()), generator)
    assert same(dict(method.discriminator.state_dict()), judge)
    assert method.generator(torch.zeros(1, 3, 32, 32)).requires_grad


def test_letters_mean_directions(reference: SimpleNamespace, tmp_path: Path) -> None:
    files: dict[str, dict[str, Tensor]] = {}
    for seed, letters in enumerate(("G_A", "G_B", "D_A", "D_B")):
        network = reference.resnet(blocks=1) if letters[0] == "G" else reference.patchgan(3, norm="instance")
        files[letters] = store(reference.trained(network, seed), tmp_path / f"latest_net_{letters}.pth")
    expected = {
        "generator_ab": files["G_A"],  # from a to b
        "generator_ba": files["G_B"],
        "discriminator_b": files["D_A"],  # judges what G_A makes: images of b
        "discriminator_a": files["D_B"],
    }
    write_checkpoint(read_contents(tmp_path).networks, tmp_path / "all.ckpt", "x")
    for path in (tmp_path, tmp_path / "all.ckpt"):
        method = TwoWays()
        warm_start(method, path)
        for name, state in expected.items():
            assert same(dict(getattr(method, name).state_dict()), state), name
    method = TwoWays()
    before = copied(method.generator_ab)
    line = warm_start(method, tmp_path / "latest_net_G_B.pth")
    assert "filled generator_ba; generator_ab, discriminator" in line
    assert line.endswith("not in the file, so they start anew")
    assert same(dict(method.generator_ab.state_dict()), before)
    assert same(dict(method.generator_ba.state_dict()), files["G_B"])


def test_a_file_that_does_not_say_which_it_is(reference: SimpleNamespace, tmp_path: Path) -> None:
    store(reference.resnet(blocks=1), tmp_path / "horse.pth")
    store(reference.resnet(blocks=1), tmp_path / "latest_net_G_A.pth")
    with pytest.raises(
        UserError, match=r"does not say which it is\nname it latest_net_G_A\.pth for generator_ab"
    ):
        warm_start(TwoWays(), tmp_path / "horse.pth")
    # One generator has one place to go, whatever its name.
    method = pix2pix(ResNetGenerator(3, 3, 4, 1))
    assert "filled generator;" in warm_start(method, tmp_path / "latest_net_G_A.pth")
    store(reference.resnet(blocks=1), tmp_path / "latest_net_G_B.pth")
    with pytest.raises(
        UserError, match="several networks for this method's generator; give one of its files"
    ):
        warm_start(method, tmp_path)


def test_safetensors_of_a_discriminator(reference: SimpleNamespace, tmp_path: Path) -> None:
    theirs = store(reference.trained(reference.patchgan()), tmp_path / "d.pth")
    (network,) = read_contents(tmp_path / "d.pth").networks
    write_safetensors(network, tmp_path / "d.safetensors", "d.pth")
    method = pix2pix()
    assert "filled discriminator; generator not in" in warm_start(method, tmp_path / "d.safetensors")
    assert same(dict(method.discriminator.state_dict()), theirs)


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (
            {"downs": 6, "base": 4},
            [
                ".conv.weight has shape (64, 32, 4, 4), this run's has (64, 16, 4, 4)",
                "the file's is a U-Net with num_downs=6; ",
                "this run's has num_downs=5: set generator.num_downs=6",
            ],
        ),
        (
            {"downs": 5, "base": 8, "norm": "instance"},
            ["set generator.base_channels=8 generator.norm=instance"],
        ),
        ({"downs": 5, "base": 4, "into": 1}, ["has in_channels=3: take data with in_channels=1"]),
    ],
)
def test_another_u_net_names_the_options_that_fit(
    reference: SimpleNamespace, tmp_path: Path, theirs: dict[str, Any], says: list[str]
) -> None:
    store(reference.unet(**theirs), tmp_path / "latest_net_G.pth")
    method = pix2pix()
    before = copied(method)
    with pytest.raises(UserError) as caught:
        warm_start(method, tmp_path / "latest_net_G.pth")
    for part in says:
        assert part in str(caught.value)
    assert str(caught.value).startswith(f"warm_start={tmp_path / 'latest_net_G.pth'}: ")
    assert str(caught.value).count("\n") == 1
    assert same(copied(method), before)


def test_another_kind_of_network_names_its_group(reference: SimpleNamespace, tmp_path: Path) -> None:
    store(reference.resnet(blocks=6, norm="batch"), tmp_path / "latest_net_G.pth")
    with pytest.raises(
        UserError, match=r"set generator=resnet_9 .*generator.num_blocks=6 generator.norm=batch"
    ):
        warm_start(pix2pix(), tmp_path / "latest_net_G.pth")
    store(reference.pixelgan(), tmp_path / "latest_net_D.pth")
    with pytest.raises(UserError, match=r"set discriminator=pixel discriminator.base_channels=4"):
        warm_start(pix2pix(), tmp_path / "latest_net_D.pth")


def test_nothing_is_filled_where_one_of_two_does_not_fit(reference: SimpleNamespace, tmp_path: Path) -> None:
    store(reference.trained(reference.unet(downs=5, base=4)), tmp_path / "latest_net_G.pth")
    store(reference.patchgan(into=3), tmp_path / "latest_net_D.pth")
    method = pix2pix()
    before = copied(method)
    with pytest.raises(UserError, match=r"discriminator\.blocks\.0\.conv\.weight has shape \(4, 3, 4, 4\)"):
        warm_start(method, tmp_path)
    assert same(copied(method), before)


def test_unreadable_files_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"warm_start: .*nowhere\.pth: no such checkpoint file"):
        warm_start(pix2pix(), tmp_path / "nowhere.pth")
