"""Test mode: an image comes out the same alone and in a batch, and the network goes back as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.networks.layers import conv_layer
from i2i_lightning.networks.resnet import ResNetGenerator
from i2i_lightning.networks.unet import UNet
from i2i_lightning.translation.modes import (
    Draws,
    ImageStatistics,
    depends_on_image,
    image_seed,
    in_test_mode,
    kept_mask,
    noise,
)
from i2i_lightning.types import UserError


def trained(network: nn.Module) -> nn.Module:
    """Give the batch norms weights and running statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


NETWORKS = {
    "resnet batch dropout": lambda: ResNetGenerator(3, 3, 8, 2, norm="batch", dropout=True, init_gain=0.1),
    "resnet instance dropout": lambda: ResNetGenerator(3, 3, 8, 2, dropout=True, init_gain=0.1),
    "unet batch dropout": lambda: UNet(3, 3, 4, 8, dropout="paper", init_gain=0.1),
    "unet syncbatch": lambda: UNet(3, 3, 4, 8, norm="syncbatch", dropout="none", init_gain=0.1),
    "unet none": lambda: UNet(3, 3, 4, 8, norm="none", dropout="paper", init_gain=0.1),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return trained(NETWORKS[request.param]())


def run(network: nn.Module, images: Tensor, seeds: list[int], mode: str = "train") -> Tensor:
    with in_test_mode(network, mode, Draws(seeds)) as lent:
        return lent(images)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_batch_gives_what_its_images_give_one_by_one(network: nn.Module, mode: str) -> None:
    # Images of very different statistics, which batch norm over the batch would mix.
    images = torch.randn(4, 3, 32, 48) * torch.tensor([0.05, 0.3, 1.0, 0.5]).view(4, 1, 1, 1)
    images += torch.tensor([-0.5, 0.0, 0.5, 0.9]).view(4, 1, 1, 1)
    network, images = network.double(), images.double()  # so that rounding does not hide a dependence
    seeds = [3, 1, 4, 1]
    batch = run(network, images, seeds, mode)
    for index in range(4):
        alone = run(network, images[index : index + 1], seeds[index : index + 1], mode)
        torch.testing.assert_close(batch[index : index + 1], alone, rtol=0, atol=1e-12)
    backwards = run(network, images.flip(0), seeds[::-1], mode).flip(0)
    torch.testing.assert_close(batch, backwards, rtol=0, atol=1e-12)


def test_train_mode_is_batch_norm_in_training_mode_on_one_image() -> None:
    network = trained(ResNetGenerator(3, 3, 8, 2, norm="batch", init_gain=0.1))
    image = torch.randn(1, 3, 16, 24)
    ours = run(network, image, [0])
    torch.testing.assert_close(ours, network.train()(image).detach(), rtol=0, atol=1e-5)


def test_eval_mode_is_the_plain_network_in_evaluation_mode(network: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    ours = run(network, images, [0, 1], "eval")
    torch.testing.assert_close(ours, network.eval()(images).detach(), rtol=0, atol=0)


def test_the_network_goes_back_as_it_was(network: nn.Module) -> None:
    network.train()
    network.get_submodule(next(name for name, _ in network.named_children())).eval()
    modes = [module.training for module in network.modules()]
    forwards = [module.forward.__func__ for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run(network, torch.randn(1, 3, 32, 32), [1])
    with pytest.raises(UserError):
        run(network, torch.randn(1, 4, 32, 32), [1])
    assert [module.training for module in network.modules()] == modes
    assert [module.forward.__func__ for module in network.modules()] == forwards
    assert not network._forward_pre_hooks
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_spectral_norms_do_not_move() -> None:
    network = nn.Sequential(conv_layer(True)(3, 4, 3), nn.BatchNorm2d(4))
    before = network[0].u.clone()
    run(network, torch.randn(1, 3, 8, 8), [0])
    torch.testing.assert_close(network[0].u, before, rtol=0, atol=0)


def test_no_gradient_is_recorded_and_the_global_random_state_stays(network: nn.Module) -> None:
    state = torch.get_rng_state()
    assert not run(network, torch.zeros(1, 3, 32, 32), [1]).requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_decide_the_dropout_and_nothing_else() -> None:
    network = ResNetGenerator(3, 3, 8, 2, dropout=True, init_gain=0.1)
    image = torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1)
    one, same, other = run(network, image, [1, 1, 2])
    assert torch.allclose(one, same, atol=1e-6)
    assert (one - other).abs().max() > 0.01


def test_a_seed_is_needed_for_each_image() -> None:
    network = ResNetGenerator(3, 3, 8, 2, dropout=True)
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        run(network, torch.zeros(2, 3, 16, 16), [1])


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5])
def test_masks_look_random(p: float) -> None:
    kept = kept_mask(seed=7, layer=0, shape=(32, 64, 64), corner=(0, 0), p=p).float()
    count = kept.numel()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) <= 4 * deviation / count**0.5
    if p == 0:
        return
    centred = (kept - kept.mean()) / deviation
    for axis in range(3):
        for lag in (1, 2, 16):
            length = kept.shape[axis]
            product = centred.narrow(axis, 0, length - lag) * centred.narrow(axis, lag, length - lag)
            assert abs(product.mean().item()) < 5 / product.numel() ** 0.5
    # Neither rows, columns nor channels are fuller than chance allows (five deviations).
    for axes in ((0, 1), (0, 2), (1, 2)):
        means = centred.mean(dim=axes)
        assert means.abs().max() < 5 / (count / len(means)) ** 0.5


def test_masks_of_seeds_and_layers_are_unrelated() -> None:
    first = kept_mask(1, 0, (16, 64, 64), (0, 0), 0.5)
    for seed, layer in ((2, 0), (1, 1)):
        other = kept_mask(seed, layer, (16, 64, 64), (0, 0), 0.5)
        assert abs((first == other).float().mean().item() - 0.5) < 5 * 0.5 / first.numel() ** 0.5


def test_a_part_of_a_mask_is_the_mask_of_the_part() -> None:
    whole = kept_mask(3, 1, (4, 20, 30), (0, 0), 0.5)
    part = kept_mask(3, 1, (4, 6, 7), (10, 20), 0.5)
    assert torch.equal(whole[:, 10:16, 20:27], part)


def test_dropout_keeps_the_mean() -> None:
    network = nn.Sequential(nn.Dropout(0.25))
    out = run(network, torch.ones(2, 16, 64, 64), [1, 2])
    torch.testing.assert_close(out.unique(), torch.tensor([0, 4 / 3]))
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_other_dropouts_are_refused() -> None:
    with pytest.raises(ValueError, match="Dropout2d"):
        run(nn.Sequential(nn.Dropout2d()), torch.ones(1, 2, 4, 4), [1])


@pytest.mark.gpu
def test_masks_are_the_same_on_cuda() -> None:
    here = kept_mask(3, 1, (64, 20, 30), (4, 8), 0.5)
    there = kept_mask(3, 1, (64, 20, 30), (4, 8), 0.5, device="cuda")
    assert torch.equal(here, there.cpu())


def test_noise_depends_on_the_seed_alone() -> None:
    z = noise([1, 2, 1], 5)
    assert z.shape == (3, 5)
    assert torch.equal(z[0], z[2])
    assert not torch.equal(z[0], z[1])


def test_image_seeds_differ_by_seed_and_key() -> None:
    seeds = {image_seed(seed, key) for seed in (0, 1) for key in ("", "a", "b/a")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_frozen_statistics_are_those_of_the_image_they_were_taken_from() -> None:
    network = trained(ResNetGenerator(3, 3, 8, 1, norm="batch", init_gain=0.1))
    image = torch.randn(1, 3, 32, 32)
    statistics = ImageStatistics()
    with in_test_mode(network, "train", Draws([0]), statistics) as lent:
        taken = lent(image)
    statistics.frozen = True
    with in_test_mode(network, "train", Draws([0]), statistics) as lent:
        again, brighter = lent(image), lent(image + 0.2)
    torch.testing.assert_close(taken, run(network, image, [0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(again, taken, rtol=0, atol=1e-5)
    # By its own statistics a brighter image would lose its brightness in the first norm.
    assert (brighter - taken).abs().mean() > 0.01


def test_which_networks_depend_on_the_image() -> None:
    batch, instance = UNet(3, 3, 4, 4), UNet(3, 3, 4, 4, norm="instance")
    assert depends_on_image(batch, "train")
    assert not depends_on_image(batch, "eval")
    assert depends_on_image(instance, "eval")
