"""Perceptual distances: sums written out, torchvision's network, masks, and the substitute's honesty."""

from __future__ import annotations

import copy
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning import weights
from i2i_lightning.losses import backbones
from i2i_lightning.losses.backbones import (
    IMAGE2STYLEGAN_LAYERS,
    IMAGE2STYLEGANPP_LAYERS,
    LPIPS_LAYERS,
    VGG16_LAYERS,
    VGG16Features,
    random_vgg16,
)
from i2i_lightning.losses.features import (
    Perceptual,
    downsample_px,
    feature_distance,
    gram_matrix,
    perceptual,
    perceptual_loss,
    resize_masks,
    style_loss,
)
from i2i_lightning.types import UserError


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A weights folder with nothing in it."""
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("I2I_WEIGHTS_DOWNLOAD", raising=False)
    return tmp_path


def pictures(number: int = 2, px: int = 32, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, channels, px, px, generator=generator, dtype=torch.float64) * 2 - 1


def small(names: tuple[str, ...] = IMAGE2STYLEGAN_LAYERS, normalise: bool = True) -> VGG16Features:
    return VGG16Features(names, random_vgg16(1 / 16), normalise).double()


# ------------------------------------------------------------------------------------------------ the network


def test_it_is_torchvisions_network_after_the_relu() -> None:
    models = pytest.importorskip("torchvision.models")
    state = random_vgg16(1.0)
    with torch.device("meta"):
        theirs: nn.Sequential = models.vgg16().features
    theirs.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)
    ours = VGG16Features(tuple(VGG16_LAYERS), state)
    images = pictures(1).float()
    activations = ours(images)
    assert tuple(activations) == tuple(VGG16_LAYERS)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    expected = {}
    for index, layer in enumerate(theirs):
        x = layer(x.clone())  # the ReLUs are in place
        expected[index] = x
    for name, (index, channels) in VGG16_LAYERS.items():
        torch.testing.assert_close(activations[name], expected[index + 1], rtol=1e-4, atol=1e-5)
        assert activations[name].shape[1] == channels


def test_without_normalisation_images_are_in_0_to_1() -> None:
    network = small(("conv1_1",), normalise=False)
    seen: list[Tensor] = []
    network.convolutions["conv1_1"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = pictures()
    network(images)
    torch.testing.assert_close(seen[0], (images + 1) / 2)


def test_only_what_is_needed_is_built_and_nothing_learns() -> None:
    before = torch.get_rng_state()
    network = small(("conv2_2", "conv1_1"))
    assert torch.equal(before, torch.get_rng_state())
    assert list(network.convolutions) == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    images = pictures().requires_grad_()
    activations = network(images)
    assert list(activations) == ["conv2_2", "conv1_1"]
    assert not any(parameter.requires_grad for parameter in network.parameters())
    activations["conv2_2"].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize(("name", "px"), [("conv1_2", 1), ("conv3_2", 4), ("conv5_3", 16)])
def test_the_smallest_image(name: str, px: int) -> None:
    network = small((name,))
    assert network.smallest_px == px
    assert network(pictures(1, px))[name].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match=rf"VGG-16 up to {name} takes \(N, 3, H, W\)"):
        network(pictures(1, px, channels=1))
    if px > 1:
        with pytest.raises(ValueError, match=rf"of at least {px} px a side"):
            network(pictures(1, px - 1))


def test_random_weights_are_fixed_and_keep_the_scale() -> None:
    before = torch.get_rng_state()
    state = random_vgg16()
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(value, other)
        for value, other in zip(state.values(), random_vgg16().values(), strict=True)
    )
    assert not torch.equal(state["features.0.weight"], random_vgg16(seed=1)["features.0.weight"])
    assert state["features.28.weight"].shape == (128, 128, 3, 3)
    # Pinned: the same on every machine and with every release.
    torch.testing.assert_close(
        state["features.0.weight"][0, 0, 0],
        torch.tensor([-0.30641481, -0.31363273, -0.06819885]),
        rtol=1e-5,
        atol=0,
    )
    activations = VGG16Features(("conv1_2", "conv5_3"), state)(pictures(4, 64).float())
    spread = [activation.square().mean().item() for activation in activations.values()]
    assert 0.1 < spread[1] / spread[0] < 10


# -------------------------------------------------------------------------------------------------- distances


@pytest.mark.parametrize("masked", [False, True])
def test_equation_2_written_out(masked: bool) -> None:
    network = small(IMAGE2STYLEGANPP_LAYERS)
    features, target = network(pictures(3)), network(pictures(3, seed=1))
    masks = torch.rand(3, 1, 32, 32, dtype=torch.float64) if masked else None
    lambdas = {"conv1_2": 0.5, "conv3_3": 2.0}
    found = perceptual_loss(features, target, masks, lambdas)
    for number in range(3):
        expected = 0.0
        for name, weight in zip(IMAGE2STYLEGANPP_LAYERS, (1.0, 0.5, 1.0, 2.0), strict=True):
            f, g = features[name][number], target[name][number]
            if masks is None:
                difference = f - g
            else:
                step = 32 // f.shape[-1]
                mask = masks[number, 0].unfold(0, step, step).unfold(1, step, step).mean((2, 3))
                difference = mask * (f - g)
            expected += weight * float((difference**2).sum()) / f.numel()
        assert found[number].item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_is_its_images_one_by_one() -> None:
    distance = perceptual("substitute").double()
    images, targets = pictures(3).requires_grad_(), pictures(3, seed=1)
    masks = torch.rand(3, 1, 32, 32, dtype=torch.float64)
    together = distance(images, targets, masks)
    for number in range(3):
        part = slice(number, number + 1)
        alone = distance(images[part], targets[part], masks[part])
        torch.testing.assert_close(together[part], alone, rtol=1e-10, atol=0)
    together[1].backward()
    assert images.grad is not None
    assert images.grad[1].any()
    assert not images.grad[[0, 2]].any()


@pytest.mark.parametrize("like", ["vgg16", "lpips_vgg"])
def test_gradients_by_finite_differences(like: str) -> None:
    distance = perceptual("substitute", like).double()  # type: ignore[arg-type]
    kept = distance.features(pictures(1, 16, seed=1))
    images = pictures(1, 16).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: distance.distance(distance.features(x), kept), (images,), fast_mode=True
    )


def test_one_target_serves_many_images() -> None:
    network = small()
    features, target = network(pictures(3)), network(pictures(1, seed=1))
    many = {name: value.expand(3, -1, -1, -1) for name, value in target.items()}
    for measure in (perceptual_loss, feature_distance, style_of(("conv3_2",))):
        torch.testing.assert_close(measure(features, target), measure(features, many))


def style_of(layers: tuple[str, ...]):  # type: ignore[no-untyped-def]
    return lambda features, target: style_loss(features, target, layers=layers)


def test_distances_are_zero_for_equal_images_and_outside_of_the_mask() -> None:
    network = small()
    images, changed = pictures(1), pictures(1)
    changed[..., 24:] = 0
    masks = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    masks[..., 12:] = 0  # out of the reach of the deepest layer's receptive field
    features, target = network(images), network(images)
    assert perceptual_loss(features, target).item() == 0
    assert feature_distance(features, target).item() == 0
    shallow = ("conv1_1", "conv1_2")
    features, target = ({k: network(x)[k] for k in shallow} for x in (images, changed))
    assert perceptual_loss(features, target).item() > 0
    assert perceptual_loss(features, target, masks).item() == 0


def test_style_is_the_gram_matrix_of_masked_features() -> None:
    features = small(("conv3_3",))(pictures(2))
    target = small(("conv3_3",))(pictures(2, seed=1))
    masks = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    found = style_loss(features, target, masks)
    for number in range(2):
        grams = []
        for feature in (features, target):
            f = feature["conv3_3"][number]
            f = f * nn.functional.adaptive_avg_pool2d(masks[number], f.shape[1:])
            grams.append(torch.einsum("ayx,byx->ab", f, f) / f.numel())
        torch.testing.assert_close(found[number], (grams[0] - grams[1]).square().sum())
    # Style does not know places.
    turned = {"conv3_3": features["conv3_3"].flip(-1)}
    assert style_loss(features, turned).max() < 1e-20
    assert (gram_matrix(features["conv3_3"]).diagonal(dim1=1, dim2=2) >= 0).all()


def test_masks_shrink_by_averages() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3] = 1
    resized = resize_masks(mask, torch.zeros(1, 5, 4, 4))
    assert resized[0, 0, 0].tolist() == [1, 0.5, 0, 0]
    assert resize_masks(mask, torch.zeros(1, 5, 8, 8)) is mask


def test_images_are_compared_at_the_smaller_size() -> None:
    images = torch.rand(1, 3, 16, 8)
    assert downsample_px(images, 16) is images
    area = downsample_px(images, 4)
    assert area.shape == (1, 3, 4, 2)
    torch.testing.assert_close(area, images.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)))
    bilinear = downsample_px(images, 4, "bilinear")  # of each 4 x 4 pixels, the four in the middle
    middle = images.unfold(2, 4, 4).unfold(3, 4, 4)[..., 1:3, 1:3].mean((4, 5))
    torch.testing.assert_close(bilinear, middle)
    with pytest.raises(UserError, match="resize=nearest: choose area or bilinear"):
        downsample_px(images, 4, "nearest")  # type: ignore[arg-type]


def test_layers_must_match() -> None:
    network = small()
    features = network(pictures(1))
    with pytest.raises(ValueError, match="cannot be compared"):
        perceptual_loss(features, {"conv1_1": features["conv1_1"]})
    with pytest.raises(ValueError, match="one layer at least"):
        style_loss(features, features, layers=())


# ------------------------------------------------------------------------------------------------ the factory


def test_auto_says_what_takes_its_place(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        distance = perceptual("auto")
    (record,) = caplog.records
    assert record.getMessage() == (
        "perceptual distance: random_vgg16 stands in for vgg16, whose weights are not at hand "
        "(i2i-weights get lpips_vgg16)"
    )
    assert distance.substitute
    assert distance.name == "substitute: random_vgg16"
    assert distance.protocol.startswith("substitute for vgg16: random_vgg16 (nothing learned")


def test_asked_for_by_name_it_is_that_or_nothing(nowhere: Path) -> None:
    for name in ("vgg16", "lpips_vgg", "lpips_alex"):
        with pytest.raises(UserError, match="not at hand"):
            perceptual(name)  # type: ignore[arg-type]


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(weights, "load", lambda name, folder: random_vgg16(1.0))
    with caplog.at_level(logging.INFO):
        distance = perceptual("auto")
    assert not caplog.records
    assert not distance.substitute
    assert distance.name == "vgg16"
    assert distance.protocol == (
        "VGG-16 conv1_1, conv1_2, conv3_2, conv4_2, mean squared differences,"
        " ImageNet's mean and deviation, at most 256 px (area)"
    )


def test_auto_does_not_pass_over_broken_weights(nowhere: Path) -> None:
    (nowhere / "vgg16-2ecbe4ce.ckpt").write_bytes(b"half a file")
    with pytest.raises(UserError, match="has 11 B"):
        perceptual("auto")


def test_what_is_kept_is_what_is_compared() -> None:
    distance = perceptual("substitute", size_px=16).double()
    images, targets = pictures(), pictures(seed=1)
    kept = distance.features(targets)
    assert kept["conv1_1"].shape[2:] == (16, 16)
    torch.testing.assert_close(distance.distance(distance.features(images), kept), distance(images, targets))
    smaller = [nn.functional.avg_pool2d(x, 2) for x in (images, targets)]
    torch.testing.assert_close(distance(*smaller), distance(images, targets))


def test_the_substitute_of_lpips_lies_in_0_to_2_and_orders_blurs() -> None:
    distance = perceptual("substitute", "lpips_vgg")
    assert distance.protocol.startswith("substitute for lpips_vgg: random_vgg16")
    sharp = nn.functional.interpolate(pictures(2, 16).float(), scale_factor=2, mode="bilinear")
    values = [distance(sharp, sharp)]
    for width in (3, 7):
        values.append(distance(nn.functional.avg_pool2d(sharp, width, 1, width // 2), sharp))
    assert (values[0] == 0).all()
    assert (values[1] > 0).all()
    assert (values[2] > values[1]).all()
    assert values[2].max() < 2
    assert tuple(distance.features(sharp)) == LPIPS_LAYERS


def test_grey_images_count_as_rgb() -> None:
    distance = perceptual("substitute").double()
    grey, other = pictures(channels=1), pictures(channels=1, seed=1)
    torch.testing.assert_close(
        distance(grey, other), distance(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1))
    )


def test_the_network_moves_along_but_is_no_state() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.objective: Perceptual = perceptual("substitute", lambdas={"conv1_1": 2.0})

    holder = Holder()
    assert not holder.state_dict()
    assert not list(holder.parameters())
    images, targets = pictures(), pictures(seed=1)
    assert holder.objective(images.float(), targets.float()).dtype == torch.float32
    holder.double()
    expected = holder.objective(images, targets)
    assert expected.dtype == torch.float64
    for other in (copy.deepcopy(holder).objective, pickle.loads(pickle.dumps(holder.objective))):
        assert torch.equal(other(images, targets), expected)
    plain = perceptual("substitute").double()
    first = {"conv1_1": plain.features(images)["conv1_1"]}, {"conv1_1": plain.features(targets)["conv1_1"]}
    torch.testing.assert_close(expected, plain(images, targets) + perceptual_loss(*first))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet"},
            "perceptual=resnet: choose one of vgg16, lpips_vgg, lpips_alex, substitute, auto",
        ),
        ({"like": "squeeze"}, "like=squeeze: choose one of vgg16"),
        ({"layers": ["conv9_1"]}, "layers: no layer conv9_1; VGG-16 has conv1_1"),
        ({"layers": []}, "layers: give at least one"),
        ({"lambdas": {"conv2_2": 1.0}}, "lambdas: conv2_2 not among the layers conv1_1"),
        ({"size_px": 0}, "size_px=0"),
    ],
)
def test_slips(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        perceptual(**{"name": "substitute", **arguments})  # type: ignore[arg-type]


def test_no_substitute_is_built_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "load", lambda name, folder: random_vgg16(1.0))
    monkeypatch.setattr(backbones, "random_vgg16", None)
    assert perceptual("vgg16").name == "vgg16"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["vgg16", "lpips_vgg", "lpips_alex"])
def test_published_weights_order_blurs(name: str) -> None:
    distance = perceptual("auto", name, folder=os.environ["I2I_TEST_WEIGHTS"])  # type: ignore[arg-type]
    assert not distance.substitute
    sharp = nn.functional.interpolate(pictures(1, 16).float(), scale_factor=4, mode="bilinear")
    near, far = (nn.functional.avg_pool2d(sharp, width, 1, width // 2) for width in (3, 9))
    assert 0 < distance(near, sharp).item() < distance(far, sharp).item()
