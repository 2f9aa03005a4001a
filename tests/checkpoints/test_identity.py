"""The face recogniser from its file: what it computes, by a plain formulation; the user's slips."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor

from i2i_lightning import config
from i2i_lightning.checkpoints import load_identity
from i2i_lightning.cli.check import check_config
from i2i_lightning.losses.identity import Identity
from i2i_lightning.types import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
# In channels, out channels and stride of every unit.
UNITS = [
    (before if number == 0 else channels, channels, 2 if number == 0 else 1)
    for before, channels, count in ((64, 64, 3), (64, 128, 4), (128, 256, 14), (256, 512, 3))
    for number in range(count)
]


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the published file."""

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (channels,)
        yield f"{name}.num_batches_tracked", ()

    yield "input_layer.0.weight", (64, 3, 3, 3)
    yield from norm("input_layer.1", 64)
    yield "input_layer.2.weight", (64,)
    yield from norm("output_layer.0", 512)
    yield "output_layer.3.weight", (512, 512 * 7 * 7)
    yield "output_layer.3.bias", (512,)
    yield from norm("output_layer.4", 512)
    for number, (into, out, _) in enumerate(UNITS):
        unit = f"body.{number}"
        if into != out:
            yield f"{unit}.shortcut_layer.0.weight", (out, into, 1, 1)
            yield from norm(f"{unit}.shortcut_layer.1", out)
        yield from norm(f"{unit}.res_layer.0", into)
        yield f"{unit}.res_layer.1.weight", (out, into, 3, 3)
        yield f"{unit}.res_layer.2.weight", (out,)
        yield f"{unit}.res_layer.3.weight", (out, out, 3, 3)
        yield from norm(f"{unit}.res_layer.4", out)
        yield f"{unit}.res_layer.5.fc1.weight", (out // 16, out, 1, 1)
        yield f"{unit}.res_layer.5.fc2.weight", (out, out // 16, 1, 1)


def random_state() -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in shapes():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        else:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            state[name] = values * (2 / values[0].numel()) ** 0.5 if len(shape) > 1 else values * 0.5
    return state


def small(**changed: Any) -> OrderedDict[str, Tensor]:
    """Everything that the file holds, of ones and twos that take no room."""
    state = OrderedDict(
        (name, torch.tensor(1) if not shape else torch.tensor(2.0).expand(shape)) for name, shape in shapes()
    )
    state.update(changed)
    return state


def plain(state: dict[str, Tensor], faces: Tensor) -> Tensor:
    """IR-SE50, equation by equation."""

    def norm(x: Tensor, name: str) -> Tensor:
        gain, bias, mean, variance = (
            state[f"{name}.{part}"].view(-1, *[1] * (x.dim() - 2))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    def prelu(x: Tensor, name: str) -> Tensor:
        return x.clamp(min=0) + state[f"{name}.weight"].view(-1, 1, 1) * x.clamp(max=0)

    x = F.conv2d(faces, state["input_layer.0.weight"], padding=1)
    x = prelu(norm(x, "input_layer.1"), "input_layer.2")
    for number, (into, out, stride) in enumerate(UNITS):
        unit = f"body.{number}"
        beside = x[:, :, ::stride, ::stride]
        if into != out:
            beside = norm(
                F.conv2d(beside, state[f"{unit}.shortcut_layer.0.weight"]), f"{unit}.shortcut_layer.1"
            )
        x = F.conv2d(norm(x, f"{unit}.res_layer.0"), state[f"{unit}.res_layer.1.weight"], padding=1)
        x = prelu(x, f"{unit}.res_layer.2")
        x = F.conv2d(x, state[f"{unit}.res_layer.3.weight"], stride=stride, padding=1)
        x = norm(x, f"{unit}.res_layer.4")
        squeezed = x.mean((2, 3)) @ state[f"{unit}.res_layer.5.fc1.weight"][:, :, 0, 0].T
        excited = squeezed.clamp(min=0) @ state[f"{unit}.res_layer.5.fc2.weight"][:, :, 0, 0].T
        x = x / (1 + (-excited).exp())[:, :, None, None] + beside
    x = norm(x, "output_layer.0").reshape(len(x), -1)
    x = norm(x @ state["output_layer.3.weight"].T + state["output_layer.3.bias"], "output_layer.4")
    return x / x.square().sum(1, keepdim=True).sqrt()


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, Tensor]:
    return random_state()


def load(path: Path, **options: Any) -> Identity:
    found = load_identity(path, **options)
    assert found is not None
    return found


def test_a_file_of_the_peers_computes_what_its_layers_say(
    state: OrderedDict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model_ir_se50.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as torch did when it was published
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = load(path)
    assert torch.equal(torch.get_rng_state(), before)
    path.unlink()
    assert not any(p.requires_grad for p in found.parameters())
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 3, 256, 256, generator=generator, dtype=torch.float64) * 2 - 1
    faces = F.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], (112, 112))
    expected = plain(state, faces)
    torch.testing.assert_close(found.features(images), expected, rtol=0, atol=1e-9)
    assert expected.abs().min() > 1e-9
    assert expected.std() > 1e-2


def test_safetensors_and_half_precision_are_read(state: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    """Without counters of batches, which torch before 0.4 did not have, and under a wrapper's names."""
    path = tmp_path / "faces.safetensors"
    halves = {
        f"module.{key}": value.half() for key, value in state.items() if not key.endswith("batches_tracked")
    }
    save_file(halves, path)
    network = load(path).network
    path.unlink()
    for key, value in network.state_dict().items():
        if not key.endswith("batches_tracked"):
            assert value.dtype == torch.float32
            assert torch.equal(value, state[key].half().float()), key


def test_records_name_the_file_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "model_ir_se50.pth"
    torch.save(small(), path)
    found = load(path, crop=None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.source == f"ArcFace IR-SE50, model_ir_se50.pth, sha256 {digest}"
    assert found.protocol == f"{found.source}, whole images"
    assert load_identity(None) is None


@pytest.mark.parametrize("root", ["invert", "edit"])
def test_both_commands_take_it_from_the_command_line(root: str, tmp_path: Path) -> None:
    path = tmp_path / "model_ir_se50.pth"
    torch.save(small(), path)
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = [
            "loss.perceptual.name=substitute",
            f"loss.identity.path={path}",
            "loss.lambda_identity=0.1",
        ]
        cfg = compose(root, overrides=options)
        check_config(cfg, config.SCHEMAS[root])
        loss = instantiate(cfg.loss, _convert_="all")
        assert instantiate(compose(root).loss.identity, _convert_="all") is None
    assert loss.weights()["identity"] == 0.1
    assert loss.identity.crop == (35, 223, 32, 220)
    assert loss.settings()["identity"] == loss.identity.protocol
    assert any(loss.identity.source in note for note in loss.notes())


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({}, "there are no weights in it"),
        ([1, 2], "it holds a list, not the weights of a network"),
        ({"g_ema": {"a": torch.ones(1)}}, "not the weights of one network: 'g_ema' is of type dict"),
        ({"conv1.weight": torch.ones(3, 3)}, r"IR-SE50 .*: input_layer.0.weight is missing \(and 397 more\)"),
        (small(**{"body.24.weight": torch.ones(1)}), r"body.24.weight is no part of it$"),
        (
            small(**{"output_layer.3.weight": torch.ones(512, 512)}),
            r"output_layer.3.weight has shape \(512, 512\) and not \(512, 25088\)$",
        ),
        (small(**{"input_layer.2.weight": torch.ones(64).long()}), "input_layer.2.weight is torch.int64$"),
        (small(**{"output_layer.3.bias": torch.full((512,), torch.nan)}), "output_layer.3.bias holds NaN"),
        ({"a": time.sleep}, "refused, it is not a plain file of tensors: it names time.sleep; nothing of it"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(held: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model_ir_se50.pth"
    torch.save(held, path)
    with pytest.raises(UserError, match=message) as slip:
        load_identity(path)
    assert str(slip.value).startswith(f"{path}: ")
    assert len(str(slip.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_ir_se50.pth", "not a checkpoint file"),
        ("model_ir_se50.safetensors", "not a whole safetensors file"),
        ("gone.pth", "no such file; give the model_ir_se50.pth"),
        ("gone.safetensors", "no such file; give the model_ir_se50.pth"),
    ],
)
def test_no_file_of_weights_is_refused_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if "gone" not in name:
        path.write_text("<html>quota exceeded</html>")
    with pytest.raises(UserError, match=message) as slip:
        load_identity(path)
    assert str(slip.value).startswith(f"{path}: ")
    assert len(str(slip.value).splitlines()) == 1
