"""LPIPS: the values of its authors, and a network that asks for nothing but our weights."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2i_lightning import weights
from i2i_lightning.losses.perceptual import LPIPS, SMALLEST_PX
from i2i_lightning.types import UserError

EXAMPLES = Path(__file__).parent / "lpips"
SHAPES = {
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": {
        0: (64, 3, 3),
        2: (64, 64, 3),
        5: (128, 64, 3),
        7: (128, 128, 3),
        10: (256, 128, 3),
        12: (256, 256, 3),
        14: (256, 256, 3),
        17: (512, 256, 3),
        19: (512, 512, 3),
        21: (512, 512, 3),
        24: (512, 512, 3),
        26: (512, 512, 3),
        28: (512, 512, 3),
    },
}


@pytest.fixture
def random_weights(monkeypatch):
    """Backbones of random numbers, the same for everyone who asks."""

    def load(name, path=None):
        generator = torch.Generator().manual_seed(0)
        state = {}
        for index, (out_channels, in_channels, px) in SHAPES["vgg" if "vgg" in name else "alex"].items():
            scale = (2 / (in_channels * px * px)) ** 0.5
            kernel = torch.randn(out_channels, in_channels, px, px, generator=generator)
            state[f"features.{index}.weight"] = scale * kernel
            state[f"features.{index}.bias"] = torch.zeros(out_channels)
        return state

    monkeypatch.setattr(weights, "load", load)
    return load


def pictures(num=2, px=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 3, px, px), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_is_the_packages_network_on_our_backbone(random_weights, net):
    lpips = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    backbone = random_weights(net)
    for key, parameter in theirs.net.named_parameters():
        _, index, part = key.split(".")
        parameter.data.copy_(backbone[f"features.{index}.{part}"])
    image, target = pictures(seed=0), pictures(seed=1)
    expected = theirs(image / 127.5 - 1, target / 127.5 - 1).flatten().detach()
    torch.testing.assert_close(LPIPS(net)(image, target), expected, rtol=1e-6, atol=0)


def test_building_it_is_silent_and_draws_nothing(random_weights, capsys, monkeypatch, recwarn):
    def no_download(*_, **__):
        raise AssertionError("it downloads")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    before = torch.get_rng_state()
    distance = LPIPS("alex")
    assert torch.equal(before, torch.get_rng_state())
    assert capsys.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "torchvision" in warning.filename]
    assert not any(value.is_meta for value in distance.state_dict().values())


def test_a_value_per_pair_the_same_for_bytes_and_floats(random_weights):
    distance = LPIPS("alex")
    image, target = pictures(3, seed=0), pictures(3, seed=1)
    values = distance(image, target)
    assert values.shape == (3,)
    assert (values > 0).all()
    assert torch.equal(distance(image, image), torch.zeros(3))
    torch.testing.assert_close(distance(image / 127.5 - 1, target / 127.5 - 1), values)
    for number in range(3):
        pair = slice(number, number + 1)
        torch.testing.assert_close(distance(image[pair], target[pair]), values[pair])


def test_it_can_be_a_loss(random_weights):
    distance = LPIPS("alex").train()
    assert not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    image, target = pictures(seed=0) / 127.5 - 1, pictures(seed=1) / 127.5 - 1
    assert not distance(image, target).requires_grad
    image.requires_grad_()
    distance(image, target).mean().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_kept_features_give_the_same_distance(random_weights, net):
    distance = LPIPS(net)
    image, target = pictures(3, seed=0), pictures(3, seed=1)
    features, kept = distance.features(image), distance.features(target / 127.5 - 1)
    found = sum((features[name] - kept[name]).square().flatten(1).sum(1) for name in kept)
    torch.testing.assert_close(found, distance(image, target), rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        assert {value.dtype for value in distance.features(image).values()} == {torch.float32}
    with pytest.raises(ValueError, match=r"LPIPS .* takes"):
        distance.features(image[:, :1])


def test_features_of_a_flat_image_have_gradients_without_nan(random_weights):
    distance = LPIPS("alex").double()
    image = torch.full((1, 3, 40, 40), -0.1, dtype=torch.float64, requires_grad=True)
    features = distance.features(image)
    assert {value.dtype for value in features.values()} == {torch.float64}
    sum(value.square().sum() for value in features.values()).backward()
    assert image.grad.isfinite().all()


def test_autocast_does_not_reach_it(random_weights):
    distance = LPIPS("alex")
    image, target = pictures(seed=0), pictures(seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        values = distance((image / 127.5 - 1), target / 127.5 - 1)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, distance(image, target))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_smallest_image(random_weights, net):
    distance = LPIPS(net)
    px = SMALLEST_PX[net]
    assert distance(pictures(1, px), pictures(1, px, 1)).isfinite().all()
    with pytest.raises(
        ValueError, match=rf"of at least {px}x{px} px, these are \(1, 3, {px - 1}, {px - 1}\)"
    ):
        distance(pictures(1, px - 1), pictures(1, px - 1))
    with pytest.raises(RuntimeError):  # no limit of ours: the backbone cannot take less
        distance.network(torch.zeros(1, 3, px - 1, px - 1), torch.zeros(1, 3, px - 1, px - 1))


def test_other_shapes_are_refused(random_weights):
    distance = LPIPS("alex")
    with pytest.raises(ValueError, match=r"takes \(N, 3, H, W\)"):
        distance(pictures()[:, :1], pictures()[:, :1])
    with pytest.raises(ValueError, match="cannot be compared"):
        distance(pictures(px=40), pictures(px=41))
    with pytest.raises(ValueError, match="net='squeeze': take one of vgg, alex"):
        LPIPS("squeeze")  # type: ignore[arg-type]


def test_without_weights_it_says_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"(?s)^lpips_vgg16: not at hand .*i2i-weights get lpips_vgg16"):
        LPIPS("vgg", tmp_path)


@pytest.mark.weights
@pytest.mark.parametrize(("net", "first", "second"), [("alex", 0.7219, 0.1376), ("vgg", 0.5686, 0.4217)])
def test_the_values_of_its_authors(net, first, second):
    distance = LPIPS(net, os.environ["I2I_TEST_WEIGHTS"])

    def example(name):
        picture = np.array(Image.open(EXAMPLES / f"ex_{name}.png").convert("RGB"))
        return torch.from_numpy(picture).permute(2, 0, 1)[None]

    values = [float(distance(example("ref"), example(name))) for name in ("p0", "p1")]
    assert values == pytest.approx([first, second], abs=5e-5)
    kept = distance.features(example("ref"))
    for name, value in zip(("p0", "p1"), (first, second), strict=True):
        features = distance.features(example(name))
        found = sum(float((features[key] - kept[key]).square().sum()) for key in kept)
        assert found == pytest.approx(value, abs=5e-5)
