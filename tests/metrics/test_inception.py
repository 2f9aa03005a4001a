"""Inception's features: the published network, and the protocol around it."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import inception as torchvision_inception

from i2i_lightning import weights
from i2i_lightning.metrics.inception import InceptionFeatures, inception_v3
from i2i_lightning.types import UserError
from i2i_lightning.weights.formats import INCEPTION_CONVOLUTIONS
from i2i_lightning.weights.store import find


def random_state():
    """Random weights of the right names and shapes, of which the features neither vanish nor explode."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in inception_v3().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("conv.weight"):
            state[key] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        elif not key.endswith("num_batches_tracked"):
            ones = key.endswith(("bn.weight", "running_var"))
            state[key] = torch.ones(shape) if ones else torch.zeros(shape)
    return state


@pytest.fixture(scope="module")
def features():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "load", lambda name, path=None: random_state())
        return InceptionFeatures()


def pictures(num=2, px=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 8, 8, generator=generator)
    return (F.interpolate(coarse, (px, px), mode="bilinear") * 255).round().to(torch.uint8)


def test_its_weights_have_torchvisions_names_and_shapes():
    with torch.device("meta"):
        theirs = torchvision_inception.Inception3(aux_logits=False, init_weights=False)
        ours = inception_v3()
    wanted = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == wanted
    blocks = [
        name for name, module in ours.named_modules() if type(module) is torchvision_inception.BasicConv2d
    ]
    assert tuple(blocks) == INCEPTION_CONVOLUTIONS
    assert len(blocks) == 94


def test_it_differs_from_torchvisions_only_in_the_pooling():
    """With torchvision's pooling put back in, it is torchvision's network."""
    theirs = torchvision_inception.Inception3(aux_logits=False, init_weights=False, num_classes=1).eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(random_state(), strict=False)
    ours = inception_v3().eval()
    ours.load_state_dict(random_state(), strict=False)
    image = pictures(1, 299) / 127.5 - 1
    with torch.inference_mode():
        assert (ours(image) - theirs(image)).abs().max() > 1e-3
        for module in ours.modules():
            for kind in "ACE":
                if isinstance(module, getattr(torchvision_inception, f"Inception{kind}")):
                    module.__class__ = getattr(torchvision_inception, f"Inception{kind}")
        torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize(
    ("name", "channels", "corner"),
    [("Mixed_5b", 192, 2.5), ("Mixed_6b", 768, 2.5), ("Mixed_7b", 1280, 2.5), ("Mixed_7c", 2048, 5.0)],
)
def test_the_padding_is_not_averaged_and_the_last_block_takes_the_maximum(features, name, channels, corner):
    """The corner of 0 1 2 3 / 4 5 6 7 / ... sees 0, 1, 4 and 5: their mean is 2.5."""
    block = getattr(features.network, name)
    pooled = []
    hook = block.branch_pool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    block(torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, channels, 4, 4))
    hook.remove()
    assert pooled[0].shape == (1, channels, 4, 4)
    assert (pooled[0][:, :, 0, 0] == corner).all()


def test_bytes_and_floats_of_any_size_give_features(features):
    image = pictures(2, 50)
    values = features(image)
    assert values.shape == (2, 2048)
    assert values.dtype == torch.float32
    assert (values >= 0).all()
    torch.testing.assert_close(features(image / 127.5 - 1), values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features(image[1:]), values[1:], rtol=1e-4, atol=1e-4)
    assert features(pictures(1, 50)[:, :, :37]).shape == (1, 2048)


def test_the_protocol_is_bilinear_without_antialiasing(features):
    image = pictures(1, 400)
    resized = F.interpolate(image / 255, (299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features(image), features.network(2 * resized - 1), rtol=1e-4, atol=1e-4)
    assert "align_corners=False" in features.protocol


def test_it_is_fixed(features):
    assert not any(module.training for module in features.train().modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert features(pictures(1)).dtype == torch.float32


def test_grey_images_are_refused(features):
    with pytest.raises(ValueError, match=r"takes RGB images \(N, 3, H, W\), these are \(2, 1, 64, 64\)"):
        features(pictures()[:, :1])


def test_without_weights_it_says_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"(?s)^fid_inception: not at hand .*i2i-weights get fid_inception"):
        InceptionFeatures(tmp_path)


@pytest.mark.weights
def test_it_agrees_with_the_published_torchscript():
    """The published module takes 299x299 px in [-1, 1] and resizes nothing itself."""
    folder = os.environ["I2I_TEST_WEIGHTS"]
    file = find("fid_inception", folder)
    if file.suffix != ".pt":
        pytest.skip(f"{file} is not the TorchScript form")
    ours = InceptionFeatures(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(str(file), map_location="cpu")
    noise = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = pictures(2, 299) / 127.5 - 1
    with torch.inference_mode():
        for image in (noise, smooth):
            expected = theirs(image)
            assert expected.abs().max() > 1
            assert (ours(image) - expected).abs().max() < 1e-5
