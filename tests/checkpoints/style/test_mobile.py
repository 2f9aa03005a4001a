"""Published MobileStyleGAN: graphs of the same container format, broken ones, and the real one."""

from __future__ import annotations

import os
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from i2i_lightning.checkpoints.style import mobile, openvino
from i2i_lightning.checkpoints.style.mean import mean_latent
from i2i_lightning.checkpoints.style.mobile import FILES, is_mobile, load_mobile
from i2i_lightning.networks.mobile_stylegan import MobileStyleGAN
from i2i_lightning.types import UserError
from tests.checkpoints.style.openvino_files import run, write

WIDTHS = [16, 12, 10]


@pytest.fixture(scope="module")
def generator() -> MobileStyleGAN:
    torch.manual_seed(0)
    made = MobileStyleGAN(WIDTHS, channels=3, z_dim=6, w_dim=9, mapping_layers=2).eval()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def written(generator, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mobile")
    write(generator, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy to break."""
    for name in FILES:
        (tmp_path / name).write_bytes((written / name).read_bytes())
    return tmp_path


def zipped(folder: Path, target: Path, inside: str = "face/data/") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            archive.writestr(f"{inside}{name}", (folder / name).read_bytes())
    return target


# -------------------- what is read


def test_every_weight_comes_back(written, generator):
    loaded = load_mobile(written)
    assert loaded.config == generator.config
    assert not loaded.training
    for key, value in generator.state_dict().items():
        if "noise" not in key and "w_avg" not in key:
            assert torch.equal(loaded.state_dict()[key], value), key
    for ours, theirs in zip(loaded.synthesis.layers, generator.synthesis.layers, strict=True):
        torch.testing.assert_close(
            ours.noise_const * ours.noise_strength, theirs.noise_const * theirs.noise_strength
        )
        assert ours.noise_const.square().mean().item() == pytest.approx(1, rel=1e-6)


def test_it_computes_what_the_graph_says(written):
    loaded = load_mobile(written).double()
    z = torch.randn(1, 6, dtype=torch.float64)
    w = loaded.mapping.to_w(z)
    # The constants sqrt(2) and 1 / sqrt(9 C) are rounded in the file.
    torch.testing.assert_close(w, run(written, "MappingNetwork", z), atol=1e-6, rtol=1e-6)
    image = loaded.synthesis(loaded.mapping.broadcast(w))
    assert image.shape == (1, 3, 32, 32)
    torch.testing.assert_close(image, run(written, "SynthesisNetwork", w), atol=1e-5, rtol=1e-5)


def test_all_ways_to_name_it(written, tmp_path):
    archive = zipped(written, tmp_path / "any name")
    flat = zipped(written, tmp_path / "flat.zip", inside="")
    prints = {load_mobile(path).fingerprint() for path in (written, str(archive), flat, written / FILES[2])}
    assert len(prints) == 1
    for path in (written, archive, written / FILES[0]):
        assert is_mobile(path)
    (tmp_path / "other.zip").write_bytes(b"PK not really")
    for path in (tmp_path, tmp_path / "other.zip", tmp_path / "nothing"):
        assert not is_mobile(path)


def test_the_mean_is_that_of_many(written):
    loaded = load_mobile(written)
    torch.manual_seed(1)
    with torch.no_grad():
        w = loaded.mapping.to_w(torch.randn(20_000, 6))
    error = w.std(0) * (1 / 10_000 + 1 / 20_000) ** 0.5
    assert ((loaded.w_avg - w.mean(0)).abs() < 5 * error).all()
    assert torch.equal(mean_latent(loaded.mapping, 6), loaded.w_avg)


def test_layers_without_noise_are_read(written, folder, generator):
    text = (folder / "SynthesisNetwork.bin").read_bytes()
    layer = generator.synthesis.b8.conv0
    stored = (layer.noise_const * layer.noise_strength).detach().numpy().tobytes()
    assert text.count(stored) == 1
    (folder / "SynthesisNetwork.bin").write_bytes(text.replace(stored, bytes(len(stored))))
    loaded = load_mobile(folder)
    assert loaded.synthesis.b8.conv0.noise_strength == 0
    assert torch.isfinite(loaded(torch.randn(1, 6))).all()


# -------------------- what is refused

BOMB = "<!DOCTYPE net [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
)


def edited(old: str, new: str, count: int = 0, name: str = "SynthesisNetwork.xml"):
    """Replace in the text of a file; the pattern has to be there."""

    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        changed, found = re.subn(old, new, text, count=count)
        assert found, old
        (folder / name).write_text(changed)

    return edit


def replaced(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, keep: float):
    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return edit


def overwritten(value: float, name: str = "SynthesisNetwork"):
    """Fill the raw file with one number."""

    def edit(folder: Path) -> None:
        size = (folder / f"{name}.bin").stat().st_size
        (folder / f"{name}.bin").write_bytes(np.full(size // 4 + 1, value, "<f4").tobytes())

    return edit


BROKEN = {
    "cut xml": (cut("SynthesisNetwork.xml", 0.7), "not a whole XML file"),
    "empty xml": (replaced("MappingNetwork.xml", b""), "not a whole XML file"),
    "cut raw file": (cut("SynthesisNetwork.bin", 0.9), r"of a raw file of \d+ B: it is not whole"),
    "empty raw file": (replaced("MappingNetwork.bin", b""), "it is not whole"),
    "binary": (replaced("SynthesisNetwork.xml", bytes(range(256))), "not a whole XML file"),
    "pickle": (replaced("MappingNetwork.xml", b"\x80\x04cos\nsystem\n"), "not a whole XML file"),
    "page": (replaced("MappingNetwork.xml", b"<html><body/></html>"), "its root is 'html'"),
    "no layers": (replaced("MappingNetwork.xml", b"<net version='10'/>"), "not a network of OpenVINO"),
    "empty net": (
        replaced("MappingNetwork.xml", b"<net version='10'><layers/><edges/></net>"),
        "has 0 layers Parameter, one is expected",
    ),
    "old version": (edited('version="10"', 'version="7"', 1), "is of version '7' .*10 and 11"),
    "entities": (
        replaced("MappingNetwork.xml", f"{BOMB}]><net>&j;</net>".encode()),
        "has a document type",
    ),
    "entities in utf-16": (
        replaced("MappingNetwork.xml", f"{BOMB}]><net>&j;</net>".encode("utf-16")),
        "has a document type",
    ),
    "external entity": (
        replaced(
            "MappingNetwork.xml", b"<!DOCTYPE net [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><net>&x;</net>"
        ),
        "has a document type",
    ),
    "unknown encoding": (
        replaced("MappingNetwork.xml", b"<?xml version='1.0' encoding='rot13'?><net/>"),
        "not a whole XML file",
    ),
    "deep": (replaced("MappingNetwork.xml", b"<net>" * 100_000), "nested deeper or longer"),
    "no raw file": (lambda folder: (folder / "MappingNetwork.bin").unlink(), "MappingNetwork.bin is not be"),
    "no graph": (lambda folder: (folder / "SynthesisNetwork.xml").unlink(), "SynthesisNetwork.xml: no such"),
    "half floats": (edited('element_type="f32" shape="9, 6"', 'element_type="f16" shape="9, 6"', 1,
                           "MappingNetwork.xml"), "holds f16, float32"),
    "shape of another size": (edited('shape="9, 6"', 'shape="9, 7"', 1, "MappingNetwork.xml"), r"216 B for"),
    "huge shape": (edited('shape="9, 6"', 'shape="999999999, 999999999"', 1, "MappingNetwork.xml"), "216 B"),
    "huge offset": (edited(r'offset="\d+"', 'offset="99999999999999"', 0), "it is not whole"),
    "negative offset": (edited(r'offset="\d+"', 'offset="-4"', 0), "where whole numbers belong"),
    "word for a number": (edited(r'to-port="1"', 'to-port="one"', 1), "where whole numbers belong"),
    "two numbers for one": (edited(r'size="4"', 'size="4,4"', 0), "where one whole number belongs"),
    "not finite": (overwritten(float("nan")), "values that are not finite"),
    "all zero": (overwritten(0.0), r"layer \S+ \(GroupConv.*a Haar kernel of 0.707107 \(it is 0\)"),
    "other activation": (edited('type="PReLU"', 'type="Relu"'), r"\(Relu\), where PReLU is expected"),
    "other up-sampling": (
        edited('type="GroupConvolutionBackpropData"', 'type="Interpolate"'),
        "where GroupConvolutionBackpropData is expected",
    ),
    "with a stride": (edited('strides="1, 1"', 'strides="2, 2"'), "with strides 1, 1 is expected"),
    "with a dilation": (edited('dilations="1, 1"', 'dilations="2, 2"'), "with dilations 1, 1"),
    "transposed": (edited('transpose_a="false"', 'transpose_a="true"'), "MatMul of rows"),
    "weights the other way": (edited('transpose_b="true"', 'transpose_b="false"'), "styles times"),
    "a name of two lines": (
        edited(r'name="PReLU_\d+" type="PReLU"', 'name="a&#10;b" type="x"'),
        "layer a b .x., where",
    ),
    "two layers of one id": (edited('layer id="3"', 'layer id="4"', 1), "two layers of the id '4'"),
    "loose edge": (edited('from-layer="3"', 'from-layer="x"', 1), "connects nothing"),
    "swapped networks": (
        lambda folder: [
            (folder / f"MappingNetwork.{end}").write_bytes((folder / f"SynthesisNetwork.{end}").read_bytes())
            for end in ("xml", "bin")
        ],
        "not a MobileStyleGAN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_one_line(folder, what):
    edit, message = BROKEN[what]
    edit(folder)
    start = time.perf_counter()
    with pytest.raises(UserError, match=message) as error:
        load_mobile(folder)
    assert time.perf_counter() - start < 5
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_a_graph_that_runs_in_a_circle_ends(folder):
    """The layers of the mapping, each fed by the last."""
    text = (folder / "MappingNetwork.xml").read_text()
    dense = re.findall(r'<layer id="(\d+)" name="MatMul', text)
    last = re.findall(r'<layer id="(\d+)" name="Multiply', text)[-1]
    edge = rf'from-layer="\d+" from-port="\d" to-layer="{dense[0]}" to-port="0"'
    text, found = re.subn(edge, f'from-layer="{last}" from-port="2" to-layer="{dense[0]}" to-port="0"', text)
    assert found == 1
    (folder / "MappingNetwork.xml").write_text(text)
    with pytest.raises(UserError, match="at most 64 dense layers"):
        load_mobile(folder)


def test_what_is_too_large_is_not_read(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(openvino, "MAX_BIN_BYTES", 100)
    for path in (folder, zipped(folder, tmp_path / "w.whl")):
        with pytest.raises(UserError, match=r"MappingNetwork\.bin is larger than 100 B"):
            load_mobile(path)
    monkeypatch.setattr(openvino, "MAX_ELEMENTS", 50)
    with pytest.raises(UserError, match="nested deeper or longer"):
        load_mobile(folder)


def test_broken_archives_are_one_line(folder, tmp_path):
    archive = zipped(folder, tmp_path / "w.whl")
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="the archive is not whole"):
        load_mobile(archive)
    # A byte of the packed constants is another.
    archive.write_bytes(content[:3000] + bytes([content[3000] ^ 255]) + content[3001:])
    with pytest.raises(UserError, match=r"w\.whl: \S+: (the archive is not whole|not a whole XML)"):
        load_mobile(archive)
    with zipfile.ZipFile(archive, "w") as empty:
        empty.writestr("other.txt", "")
    with pytest.raises(UserError, match=r"the archive has 0 files MappingNetwork\.xml, one is expected"):
        load_mobile(archive)
    with pytest.raises(UserError, match="no such file or folder"):
        load_mobile(tmp_path / "nowhere")


def test_random_damage_never_escapes(folder):
    """One to three bytes of the graph, 150 times: it is read, or it is one line."""
    rng = np.random.default_rng(0)
    name = folder / "SynthesisNetwork.xml"
    whole = name.read_bytes()
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(32, 127)
        name.write_bytes(bytes(damaged))
        try:
            load_mobile(folder)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in refusal for refusal in refusals)


# -------------------- the real one


@pytest.fixture(scope="module")
def published() -> MobileStyleGAN:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    from i2i_lightning.weights.store import verified

    return load_mobile(verified(mobile.WEIGHTS, os.environ["I2I_TEST_WEIGHTS"]))


@pytest.mark.weights
def test_the_published_generator_makes_faces(published):
    """Its size, its mean, and colours as photographs have them."""
    assert (published.size_px, published.num_ws, published.z_dim, published.w_dim) == (1024, 16, 512, 512)
    assert sum(parameter.numel() for parameter in published.parameters()) == 9_407_643
    torch.manual_seed(1)
    with torch.no_grad():
        mean = published.mapping.to_w(torch.randn(4096, 512)).mean(0)
        assert torch.cosine_similarity(mean, published.w_avg, dim=0) > 0.999
        assert 4.0 < published.w_avg.norm() < 4.3
        image = published(torch.randn(2, 512), truncation=0.7)
    assert image.shape == (2, 3, 1024, 1024)
    assert 0.2 < image.std() < 0.8
    assert image.abs().max() < 3
    assert (image.abs() > 1.1).float().mean() < 0.02
    # Neighbours of a photograph are alike; red above blue in the middle of a face.
    assert (image[..., 1:] - image[..., :-1]).abs().mean() < 0.06
    centre = image[:, :, 400:700, 400:620].mean((2, 3))
    assert (centre[:, 0] > centre[:, 2]).all()
    assert not torch.allclose(image[0], image[1], atol=0.1)


@pytest.mark.weights
@pytest.mark.slow
def test_the_published_graph_is_computed_as_it_says(published, tmp_path):
    """Every operation of the file in float64, at full size."""
    from i2i_lightning.weights.store import verified

    with zipfile.ZipFile(verified(mobile.WEIGHTS, os.environ["I2I_TEST_WEIGHTS"])) as archive:
        for name in FILES:
            (tmp_path / name).write_bytes(archive.read(f"random_face/data/{name}"))
    torch.manual_seed(0)
    z = torch.randn(1, 512)
    with torch.no_grad():
        w = published.mapping.to_w(z)
        exact_w = run(tmp_path, mobile.MAPPING, z.double())
        assert (w - exact_w).abs().max() < 1e-5
        exact = run(tmp_path, mobile.SYNTHESIS, w.double())
        image = published.synthesis(published.mapping.broadcast(w))
    assert (image - exact).abs().max() < 5e-4
    assert (image - exact).square().mean().sqrt() < 1e-5
