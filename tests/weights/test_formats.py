"""Every layout becomes the same tensors, and no file gets to run anything."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from i2i_lightning.types import UserError
from i2i_lightning.weights.formats import FLAX_CONVOLUTIONS, INCEPTION_CONVOLUTIONS, read


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def evils(marker):
    touch = f"touch {marker}"
    array = np.empty(1, object)
    array[0] = Evil(os.system, touch)
    return {
        "system": Evil(os.system, touch),
        "eval": Evil(eval, f"open({str(marker)!r}, 'w')"),
        "exec in a layer": {"VGG16_0": {"Conv_0": {"kernel": Evil(exec, f"open({str(marker)!r}, 'w')")}}},
        "in an array": {"VGG16_0": array},
        "getattr": Evil(getattr, "text", "format"),
        "load": Evil(pickle.loads, pickle.dumps(Evil(os.system, touch))),
        "numpy": Evil(np.load, str(marker)),
    }


def flax_pickle(network, protocol=3):
    """Weights as flax saves them, and the same under torchvision's names."""
    rng = np.random.default_rng(0)
    saved, wanted = {}, {}
    for number, index in enumerate(FLAX_CONVOLUTIONS[network]):
        kernel = rng.normal(size=(3, 3, 2, 4)).astype("float32")
        bias = rng.normal(size=4).astype("float32")
        saved[f"Conv_{number}"] = {"kernel": kernel, "bias": bias}
        wanted[f"features.{index}.weight"] = torch.tensor(np.moveaxis(kernel, (3, 2), (0, 1)))
        wanted[f"features.{index}.bias"] = torch.tensor(bias)
    return pickle.dumps({network: saved, "NetLinLayer_0": {}}, protocol), wanted


@pytest.mark.parametrize("network", list(FLAX_CONVOLUTIONS))
def test_flax_kernels_become_torchvisions(tmp_path, network):
    data, wanted = flax_pickle(network)
    (tmp_path / "w.ckpt").write_bytes(data)
    state = read(tmp_path / "w.ckpt", "flax_pickle")
    assert list(state) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(state[key], value), key
        assert state[key].is_contiguous()


@pytest.mark.parametrize("name", list(evils("")))
def test_a_pickle_that_would_call_something_is_refused(tmp_path, name):
    marker = tmp_path / "it-ran"
    (tmp_path / "w.ckpt").write_bytes(pickle.dumps(evils(marker)[name]))
    with pytest.raises(UserError, match=r"w.ckpt: refused, .*it asks for"):
        read(tmp_path / "w.ckpt", "flax_pickle")
    assert not marker.exists()


def test_names_reach_no_further_than_their_module(tmp_path):
    """Protocol 4 lets a name have dots: ``numpy`` ``ndarray.tofile`` is not ``numpy.ndarray``."""
    data = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    (tmp_path / "w.ckpt").write_bytes(data)
    with pytest.raises(UserError, match=r"it asks for numpy.ndarray.tofile"):
        read(tmp_path / "w.ckpt", "flax_pickle")


class Layer(nn.Module):
    """A convolution as the published TorchScript has it."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, 3, 1, 1, generator=generator))
        for name in ("beta", "mean", "var"):
            self.register_parameter(name, nn.Parameter(torch.rand(2, generator=generator)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory):
    """A TorchScript archive of 94 nested layers, and the layers."""
    layers = [Layer(number) for number in range(94)]
    nested = nn.Sequential(
        layers[0], nn.Sequential(*layers[1:50]), nn.MaxPool2d(2), nn.Sequential(*layers[50:])
    )
    path = tmp_path_factory.mktemp("torchscript") / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nested).save(str(path))
    return path, layers


def test_torchscript_gives_its_tensors_in_order(torchscript):
    path, layers = torchscript
    state = read(path, "torchscript_inception")
    assert len(state) == 5 * 94
    for name, layer in zip(INCEPTION_CONVOLUTIONS, layers, strict=True):
        assert torch.equal(state[f"{name}.conv.weight"], layer.weight)
        assert torch.equal(state[f"{name}.bn.weight"], torch.ones(2))
        assert torch.equal(state[f"{name}.bn.bias"], layer.beta)
        assert torch.equal(state[f"{name}.bn.running_mean"], layer.mean)
        assert torch.equal(state[f"{name}.bn.running_var"], layer.var)


@pytest.mark.parametrize("name", list(evils("")))
def test_torchscript_that_would_call_something_is_refused(tmp_path, name):
    marker = tmp_path / "it-ran"
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps(evils(marker)[name], 2))
    with pytest.raises(UserError, match=r"w.pt: (refused|not weights)"):
        read(tmp_path / "w.pt", "torchscript_inception")
    assert not marker.exists()


def test_official_files_give_only_what_is_used(tmp_path):
    saved = OrderedDict(
        {"features.0.weight": torch.rand(2, 3, 3, 3), "classifier.6.weight": torch.rand(10, 4)}
    )
    torch.save(saved, tmp_path / "vgg.pth", _use_new_zipfile_serialization=False)
    state = read(tmp_path / "vgg.pth", "torchvision")
    assert list(state) == ["features.0.weight"]
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    saved = {f"{name}.{part}": torch.rand(1) for name in INCEPTION_CONVOLUTIONS for part in parts}
    torch.save({**saved, "fc.weight": torch.rand(3, 3)}, tmp_path / "inception.pth")
    state = read(tmp_path / "inception.pth", "inception_pth")
    assert state == saved


@pytest.mark.parametrize("layout", ["torchvision", "inception_pth"])
def test_official_files_run_nothing_either(tmp_path, layout):
    marker = tmp_path / "it-ran"
    torch.save({"features.0.weight": Evil(os.system, f"touch {marker}")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: refused"):
        read(tmp_path / "w.pth", layout)
    assert not marker.exists()


@pytest.mark.parametrize("layout", ["torchvision", "inception_pth", "flax_pickle", "torchscript_inception"])
@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"not weights", pickle.dumps({"VGG16_0": {}}, 2), pickle.dumps(3, 2)]
)
def test_other_files_are_one_line(tmp_path, layout, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / "w", layout)
    assert "\n" not in str(error.value)


def test_a_truncated_archive_is_one_line(tmp_path, torchscript):
    whole = torchscript[0].read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not weights of the layout"):
        read(tmp_path / "w.pt", "torchscript_inception")
    buffer = io.BytesIO()
    torch.save({"features.0.weight": torch.rand(100)}, buffer)
    (tmp_path / "w.pth").write_bytes(buffer.getvalue()[:300])
    with pytest.raises(UserError, match="not weights of the layout"):
        read(tmp_path / "w.pth", "torchvision")
