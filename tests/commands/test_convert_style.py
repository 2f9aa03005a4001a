"""``i2i-convert`` on files with a style-based generator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from i2i_lightning.checkpoints import load_style_discriminator, load_style_generator, save_style_generator
from i2i_lightning.checkpoints.style import rosinality
from i2i_lightning.checkpoints.style.load import open_style
from i2i_lightning.cli import help as help_page
from i2i_lightning.cli.folders import conf_dir
from i2i_lightning.commands.convert import APP, WORDS
from tests.checkpoints.style import peers


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = peers.stylegan2(conv_clamp=256.0)
    pickled = peers.write_nvidia(tmp_path / "network-snapshot.pkl", generator)
    tensors, layout, again = (tmp_path / name for name in ("g.safetensors", "g.pt", "h.safetensors"))
    assert APP.main([f"checkpoint={pickled}", f"output={tensors}"]) == 0
    out = capsys.readouterr().out
    assert "network-snapshot.pkl: a network pickle of NVIDIA's, for PyTorch\n  StyleGAN2 generator" in out
    assert "; moving average of the weights" in out
    assert "g.safetensors: safetensors, " in out
    provenance = open_style(tensors).generator()[1].provenance
    assert provenance is not None
    assert provenance["made_from"] == "network-snapshot.pkl"
    assert provenance["recognised_as"] == "a network pickle of NVIDIA's, for PyTorch"
    # The average stays the average, over a second conversion too.
    assert APP.main([f"checkpoint={tensors}", f"output={tmp_path / 'i.safetensors'}"]) == 0
    assert "; moving average of the weights" in capsys.readouterr().out
    for file in (tensors, tmp_path / "i.safetensors"):
        words = [f"checkpoint={file}", f"output={tmp_path / 'last.safetensors'}", "averaged=false"]
        assert APP.main(words) == 1
        told = f"i2i-convert: {file}: not loaded: averaged=false: the file holds the average alone\n"
        assert capsys.readouterr().err == told
    assert not (tmp_path / "last.safetensors").exists()

    assert APP.main([f"checkpoint={pickled}", f"output={layout}", "format=rosinality"]) == 0
    out = capsys.readouterr().out
    assert "g.pt: the layout of rosinality/stylegan2-pytorch" in out
    assert "with the discriminator" in out
    assert set(torch.load(layout, weights_only=True)) == {"g_ema", "latent_avg", "d"}
    assert APP.main([f"checkpoint={layout}", f"output={again}"]) == 0
    assert "a checkpoint of rosinality/stylegan2-pytorch" in capsys.readouterr().out
    state = load_style_generator(again).state_dict()
    assert all(torch.equal(state[name], value) for name, value in generator.state_dict().items())


def test_last_weights_and_discriminator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = peers.stylegan2()
    peers.fill(last, 4)
    pickled = peers.write_nvidia(tmp_path / "g.pkl", peers.stylegan2(), last=last)
    output = tmp_path / "g.safetensors"
    assert APP.main([f"checkpoint={pickled}", f"output={output}", "averaged=false"]) == 0
    assert "moving average" not in capsys.readouterr().out
    for averaged in (True, False):
        assert load_style_generator(output, averaged).fingerprint() == last.fingerprint()
    judge = tmp_path / "d.safetensors"
    assert APP.main([f"checkpoint={pickled}", f"output={judge}", "network=discriminator"]) == 0
    assert load_style_discriminator(judge).size_px == 16


def test_last_weights_stay_the_last_in_the_other_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of averaged=false, and of a run that kept no average."""
    last = peers.stylegan2()
    peers.fill(last, 4)
    pickled = peers.write_nvidia(tmp_path / "g.pkl", peers.stylegan2(), last=last)
    run = tmp_path / "last.ckpt"
    node = {"_target_": "i2i_lightning.networks.stylegan2.generator.StyleGAN2Generator", **last.arguments}
    state = {f"generator.{name}": value for name, value in last.state_dict().items()}
    torch.save({"state_dict": state, "method_config": {"generator": node}}, run)
    for number, words in enumerate(([f"checkpoint={pickled}", "averaged=false"], [f"checkpoint={run}"])):
        layout = tmp_path / f"{number}.pt"
        assert APP.main([*words, f"output={layout}"]) == 0
        assert "not known to be an average over training" in capsys.readouterr().out
        assert torch.load(layout, weights_only=True)["averaged"] is False
        tensors = tmp_path / f"{number}.safetensors"
        assert APP.main([f"checkpoint={layout}", f"output={tensors}"]) == 0
        assert "moving average" not in capsys.readouterr().out
        for file in (layout, tensors):
            assert not open_style(file).generator()[1].averaged
            state = load_style_generator(file, averaged=False).state_dict()
            assert all(torch.equal(state[name], value) for name, value in last.state_dict().items())


def test_a_damaged_discriminator_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = peers.discriminator()
    with torch.no_grad():
        judge.b4.out.weight = torch.nn.Parameter(torch.zeros(1, 3))
    pickled = peers.write_nvidia(tmp_path / "g.pkl", peers.stylegan2(), judge)
    words = [f"checkpoint={pickled}", f"output={tmp_path / 'g.pt'}"]
    assert APP.main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"i2i-convert: {pickled}: not loaded: b4.out.weight has shape (1, 3)")
    assert told.endswith("; network=generator leaves the discriminator out\n")
    assert not (tmp_path / "g.pt").exists()
    assert APP.main([*words, "network=generator"]) == 0
    assert set(torch.load(tmp_path / "g.pt", weights_only=True)) == {"g_ema", "latent_avg"}


def test_files_without_a_discriminator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = peers.stylegan2()
    save_style_generator(tmp_path / "a.safetensors", generator)
    peers.write(tmp_path / "b.pkl", peers.nvidia_generator(generator))
    peers.write(tmp_path / "c.pkl", peers.tf_stylegan2(generator))
    node = {
        "_target_": "i2i_lightning.networks.stylegan2.generator.StyleGAN2Generator",
        **generator.arguments,
    }
    state = {f"generator.{name}": value for name, value in generator.state_dict().items()}
    torch.save({"state_dict": state, "method_config": {"generator": node}}, tmp_path / "d.ckpt")
    torch.save(rosinality.layout(generator, None, "x", averaged=True)[0], tmp_path / "e.pt")
    for file in sorted(tmp_path.iterdir()):
        assert not open_style(file).has_discriminator()
        assert APP.main([f"checkpoint={file}", f"output={tmp_path / 'out.pt'}", "overwrite=true"]) == 0
        assert "discriminator" not in capsys.readouterr().out
    assert not open_style("embedded").has_discriminator()
    assert open_style(peers.write_nvidia(tmp_path / "g.pkl", generator)).has_discriminator()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["output=g.onnx"], "tells no format that a style-based generator has"),
        (["output=g.safetensors", "format=onnx"], "format=onnx"),
        (["output=g.safetensors", "direction=ab"], "leave direction out"),
        (["output=g.pt", "network=discriminator"], "beside the generator"),
        (["output=."], "a folder"),
    ],
)
def test_slips(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    peers.write_nvidia(tmp_path / "g.pkl", peers.stylegan2())
    assert APP.main(["checkpoint=g.pkl", *words]) != 0
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.pkl"]


def test_a_hostile_pickle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.pkl").write_bytes(b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.")
    assert APP.main([f"checkpoint={tmp_path / 'g.pkl'}", f"output={tmp_path / 'g.safetensors'}"]) != 0
    err = capsys.readouterr().err.strip()
    assert err == f"i2i-convert: {tmp_path / 'g.pkl'}: refused: it names os.system; nothing of it was run"


def test_help_and_config_name_every_format() -> None:
    page = help_page.page("i2i-convert", "convert", None, conf_dir())
    (line,) = re.findall(r"^format: .*$", (conf_dir() / "convert.yaml").read_text(), re.MULTILINE)
    for name in WORDS:
        assert name in page.partition("  format=")[2].partition("  network=")[0]
        assert name in line


def test_format_rosinality_wants_a_style(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model.1.weight": torch.ones(2)}, tmp_path / "x.pth")
    words = [f"checkpoint={tmp_path / 'x.pth'}", f"output={tmp_path / 'g.pt'}", "format=rosinality"]
    assert APP.main(words) != 0
    assert "holds no style-based generator" in capsys.readouterr().err
