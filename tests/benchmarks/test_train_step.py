"""The step benchmark: its plain loop is the published one, its contenders agree, its floor is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import train_step
from benchmarks.reference_pix2pix import PlainPix2Pix, copy_weights, patchgan, unet
from benchmarks.train_step import Setting
from i2i_lightning.networks.patchgan import PatchGAN
from i2i_lightning.networks.unet import UNet

TINY = Setting(size_px=64, base_channels=2, precision="fp64", dropout=False)
CYCLE = replace(
    TINY, method="cyclegan", size_px=32, overrides=("generator.num_blocks=1", "method.pool_size=2")
)


@pytest.mark.parametrize("num_downs", [5, 6, 7, 8])
def test_plain_networks_are_ours_with_dropout_in_the_same_places(num_downs: int) -> None:
    torch.manual_seed(0)
    ours, plain = UNet(3, 3, num_downs, base_channels=2), unet(3, 3, num_downs, 2, dropout=True)
    copy_weights(ours, plain)
    x = torch.randn(2, 3, 2**num_downs, 2**num_downs)
    outputs = []
    for network in (ours, plain):
        torch.manual_seed(1)  # the same draws, if each dropout has its place in the order
        outputs.append(network(x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    assert sum(isinstance(m, nn.Dropout) for m in plain.modules()) == num_downs - 5

    judge, plain_judge = PatchGAN(6, 2), patchgan(6, 2)
    copy_weights(judge, plain_judge)
    y = torch.randn(1, 6, 32, 32)
    torch.testing.assert_close(judge(y), plain_judge(y), rtol=0, atol=1e-6)


def test_plain_step_freezes_the_discriminator_for_the_generator_and_moves_both() -> None:
    torch.manual_seed(0)
    loop = PlainPix2Pix(unet(3, 3, 5, 2, dropout=False), patchgan(6, 2))
    before = [next(net.parameters()).detach().clone() for net in (loop.generator, loop.discriminator)]
    batch = {"real_a": torch.randn(1, 3, 32, 32), "real_b": torch.randn(1, 3, 32, 32)}
    losses = loop.step(batch)
    assert set(losses) == set(train_step.TERMS["pix2pix"])
    for net, old in zip((loop.generator, loop.discriminator), before, strict=True):
        assert not torch.equal(next(net.parameters()), old)
    assert not any(p.requires_grad for p in loop.discriminator.parameters())


@pytest.mark.parametrize("setting", [TINY, CYCLE], ids=["pix2pix", "cyclegan"])
def test_contenders_compute_the_same_losses(tmp_path: Path, setting: Setting) -> None:
    losses: dict[str, list[list[float]]] = {}
    for contender in train_step.CONTENDERS:
        seen = losses.setdefault(contender, [])

        def keep(terms: dict[str, Tensor], seen: list[list[float]] = seen) -> bool:
            seen.append([terms[name].item() for name in train_step.TERMS[setting.method]])
            return len(seen) < 4

        train_step.train(contender, setting, str(tmp_path), keep)
    for contender in ("bare", "ours"):
        assert len(losses[contender]) == 4
        for step, plain in zip(losses[contender], losses["plain"], strict=True):
            assert step == pytest.approx(plain, rel=1e-11)


def test_floor_counts_the_published_work() -> None:
    base = train_step.floor(Setting(size_px=256))
    assert base["parameters"] == 54_413_955 + 2_768_705
    assert base["flop"] == pytest.approx(86.9e9, rel=0.01)
    assert base["bytes"] == 40 * base["parameters"]
    assert base["compute_ms"] > 0
    assert base["traffic_ms"] > 0


def test_floor_counts_the_published_work_of_cyclegan() -> None:
    base = train_step.floor(Setting(method="cyclegan", size_px=256))
    assert base["parameters"] == 2 * (11_378_179 + 2_764_737)
    assert base["flop"] == pytest.approx(1879e9, rel=0.01)


def test_difference_is_relative_and_the_largest() -> None:
    assert train_step.largest_difference([1.0, 2.0], [1.0, 2.5]) == pytest.approx(0.2)


def test_command_line_becomes_rows() -> None:
    settings, path = train_step.parse(
        ["--size-px", "128", "--batch", "1", "4", "--device", "cpu", "--repeats", "3"]
    )
    assert path is None
    assert [(s.size_px, s.batch, s.precision, s.repeats, s.block) for s in settings] == [
        (128, 1, "fp32", 3, 1),
        (128, 4, "fp32", 3, 1),
    ]


@pytest.mark.slow
def test_benchmark_runs_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    argv = ["--size-px", "64", "--batch", "1", "--device", "cpu", "--base-channels", "2", "--threads", "1"]
    assert train_step.main([*argv, "--repeats", "2", "--check-steps", "2", "--json", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert row["ratio_to_plain"]["plain"] == 1
    assert all(len(row["milliseconds"][name]["all"]) == 2 for name in train_step.CONTENDERS)
    assert max(row["loss_difference"]["fp64"]) < 1e-11
    assert "Lightning and logging add" in capsys.readouterr().out


def test_report_can_be_read_without_a_check() -> None:
    times = {"median": 2.0, "least": 1.0, "quartiles": [1.5, 2.5], "all": [1.0, 2.0, 3.0], "processor": 2.0}
    base = {
        "flop": 1e9,
        "flop_per_s": 1e12,
        "compute_ms": 1.0,
        "bytes": 1e9,
        "bytes_per_s": 1e12,
        "traffic_ms": 1.0,
    }
    text = train_step.report(
        {
            "setting": vars(replace(TINY, overrides=("optimizer.fused=false",))),
            "milliseconds": dict.fromkeys(train_step.CONTENDERS, times),
            "ratio_to_plain": dict.fromkeys(train_step.CONTENDERS, 1.0),
            "loss_difference": {},
            "floor": base,
        }
    )
    assert "pix2pix, 64 px, batch 1, cpu, fp64, optimizer.fused=false" in text
    assert "1.00 times the sum" in text
