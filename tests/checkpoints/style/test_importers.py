"""Generators from files in the peers' own formats: the same weights, the same images, nothing executed."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.checkpoints import load_style_discriminator, load_style_generator
from i2i_lightning.checkpoints.style.load import open_style
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError
from tests.checkpoints.style import peers


def same(network: nn.Module, other: nn.Module) -> None:
    """Compare weights bit by bit, one set of names being the other."""
    state, expected = network.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value.float()), name


def image(generator: StyleGenerator, truncation: float = 0.7) -> Tensor:
    draws = torch.Generator().manual_seed(3)
    z = torch.randn(2, generator.z_dim, generator=draws)
    label = torch.eye(max(2, generator.label_dim))[:2] if generator.label_dim else None
    with torch.no_grad():
        return generator(z, label, truncation=truncation)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("label_dim", [0, 3])
def test_nvidia(tmp_path: Path, protocol: int, label_dim: int) -> None:
    generator = peers.stylegan2(label_dim=label_dim, conv_clamp=256.0)
    layers = {"mapping_layers": 2} if label_dim else {}
    judge = peers.discriminator(label_dim=label_dim, conv_clamp=256.0, **layers)
    path = peers.write_nvidia(tmp_path / "network-snapshot.pkl", generator, judge, protocol=protocol)
    loaded = load_style_generator(path)
    same(loaded, generator)
    assert loaded.config == generator.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(image(loaded), image(generator))
    judged = load_style_discriminator(path)
    same(judged, judge)
    assert judged.arguments == judge.arguments
    label = torch.eye(3)[:2] if label_dim else None
    assert torch.equal(judged(image(loaded), label), judge(image(generator), label))


def test_nvidia_average_or_last(tmp_path: Path) -> None:
    generator, last = peers.stylegan2(), peers.stylegan2()
    peers.fill(last, 5)
    path = peers.write_nvidia(tmp_path / "g.pkl", generator, last=last)
    same(load_style_generator(path), generator)
    same(load_style_generator(path, averaged=False), last)


def test_stylegan3_container(tmp_path: Path) -> None:
    """Its StyleGAN2 keeps the arguments of the synthesis beside the others."""
    generator = peers.stylegan2(32, channel_base=130, conv_clamp=256.0)
    path = peers.write_nvidia(tmp_path / "g.pkl", generator, flat=True)
    loaded = load_style_generator(path)
    assert loaded.config == generator.config
    same(loaded, generator)


def test_a_network_by_itself(tmp_path: Path) -> None:
    generator = peers.stylegan2()
    path = peers.write(tmp_path / "g_ema.pkl", peers.nvidia_generator(generator))
    same(load_style_generator(path), generator)


def test_nvidia_label_rate(tmp_path: Path) -> None:
    """The rate of a label's mapping is no setting here: weights are scaled instead."""
    judge = peers.discriminator(label_dim=3, mapping_layers=2)
    root = peers.nvidia_discriminator(judge)
    mapping = root.state["_modules"]["mapping"]
    for layer in ("fc0", "fc1"):
        state = mapping.state["_modules"][layer].state
        state["bias_gain"] = 0.1
        for part in ("weight", "bias"):
            state["_parameters"][part].data /= 10
    path = peers.write(tmp_path / "d.pkl", {"D": root})
    label, picture = torch.eye(3), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(load_style_discriminator(path)(picture, label), judge(picture, label))


@pytest.mark.parametrize(("version", "label_dim"), [(4, 0), (5, 0), (5, 3)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensorflow_stylegan2(tmp_path: Path, version: int, label_dim: int, protocol: int) -> None:
    generator = peers.stylegan2(label_dim=label_dim, conv_clamp=256.0 if version == 5 else None)
    last = peers.stylegan2(label_dim=label_dim)
    layers = {"mapping_layers": 1} if label_dim else {}
    judge = peers.discriminator(label_dim=label_dim, **layers)
    networks = (
        peers.tf_stylegan2(last, version),
        peers.tf_discriminator(judge, version, mbstd_group_size=4, mapping_lrmul=0.01),
        peers.tf_stylegan2(generator, version),
    )
    path = peers.write(tmp_path / "ffhq.pkl", networks, protocol)
    loaded = load_style_generator(path)
    assert loaded.config == generator.config
    for name, value in generator.state_dict().items():
        # Of a style's bias, 1 is taken off and added again.
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=2e-7)
    torch.testing.assert_close(image(loaded), image(generator), rtol=0, atol=1e-5)
    judged = load_style_discriminator(path)
    same(judged, judge)
    assert judged.arguments == judge.arguments
    assert load_style_generator(path, averaged=False).config["conv_clamp"] is None


@pytest.mark.parametrize(("version", "size_px", "label_dim"), [(2, 16, 0), (3, 128, 0), (4, 16, 3)])
def test_tensorflow_stylegan1(tmp_path: Path, version: int, size_px: int, label_dim: int) -> None:
    generator = peers.stylegan1(size_px, channel_base=size_px, label_dim=label_dim)
    network = peers.tf_stylegan1(generator, version)
    path = peers.write(tmp_path / "karras2019stylegan.pkl", (network, network, network))
    loaded = load_style_generator(path)
    same(loaded, generator)
    assert loaded.config == generator.config
    assert torch.equal(image(loaded), image(generator))
    assert open_style(path).generator()[1].averaged


@pytest.mark.parametrize(("fused", "flipped_from"), [(True, 0), (False, 4096)])
def test_tensorflow_stylegan1_fused(tmp_path: Path, fused: bool, flipped_from: int) -> None:
    generator = peers.stylegan1(128, channel_base=128)
    network = peers.tf_stylegan1(generator, flipped_from=flipped_from)
    network.held["static_kwargs"]["fused_scale"] = fused
    same(load_style_generator(peers.write(tmp_path / "g.pkl", (network,) * 3)), generator)


def rosinality(path: Path, size: int = 16, trained: bool = False, legacy: bool = False) -> dict[str, Tensor]:
    """Write a checkpoint with random weights, and return those of the averaged generator."""
    torch.manual_seed(7)
    channels = peers.widths(size, 64, 8)
    generator = peers.RosinalityGenerator(size, 12, 3, channels)
    judge = peers.RosinalityDiscriminator(size, channels)
    held: dict[str, object] = {"g_ema": generator.state_dict()}
    if trained:
        optimizer = torch.optim.Adam(judge.parameters())
        sum(value.sum() for value in judge.parameters()).backward()  # type: ignore[union-attr]
        optimizer.step()
        last = peers.RosinalityGenerator(size, 12, 3, channels)
        held |= {
            "g": last.state_dict(),
            "d": judge.state_dict(),
            "g_optim": torch.optim.Adam(generator.parameters()).state_dict(),
            "d_optim": optimizer.state_dict(),
            "args": argparse.Namespace(size=size, latent=12, n_mlp=3, path="data.lmdb", lr=0.002),
            "ada_aug_p": 0.25,
        }
    else:
        held["latent_avg"] = torch.randn(12)
    torch.save(held, path, _use_new_zipfile_serialization=not legacy)
    return generator.state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_rosinality(tmp_path: Path, trained: bool, legacy: bool) -> None:
    path = tmp_path / "550000.pt"
    state = rosinality(path, trained=trained, legacy=legacy)
    loaded = load_style_generator(path)
    assert loaded.config["z_dim"] == loaded.config["w_dim"] == 12
    assert torch.equal(loaded.state_dict()["synthesis.b16.conv0.weight"], state["convs.2.conv.weight"][0])
    assert torch.equal(loaded.noise_maps()[3], state["noises.noise_3"])
    notes = open_style(path).generator()[1].notes
    if trained:
        assert notes == ("mean latent computed, the file has none",)
        w = loaded.mapping.to_w(torch.randn(4000, 12))
        assert (w.mean(0) - loaded.w_avg).norm() < 0.1 * w.std(0).norm()
        assert load_style_discriminator(path).size_px == 16
        assert not torch.equal(load_style_generator(path, averaged=False).w_avg, loaded.w_avg)
    else:
        assert notes == ()
        with pytest.raises(UserError, match=r"holds no discriminator \(d\)$"):
            load_style_discriminator(path)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("prefix", ["", "decoder."])
def test_rosinality_without_noise_maps(tmp_path: Path, prefix: str, mean: bool) -> None:
    """Files from before the maps were buffers, rosinality's own FFHQ among them; pSp's decoders were such."""
    torch.manual_seed(7)
    generator = peers.RosinalityGenerator(16, 12, 3, peers.widths(16, 64, 8), maps=False)
    full = rosinality(tmp_path / "full.pt")
    full |= generator.state_dict()

    def write(name: str, state: dict[str, Tensor]) -> Path:
        held: dict[str, object] = {"latent_avg": torch.ones(12)} if mean else {}
        held["state_dict" if prefix else "g_ema"] = {prefix + key: value for key, value in state.items()}
        torch.save(held, tmp_path / name)
        return tmp_path / name

    path = write("550000.pt", generator.state_dict())
    loaded, known = open_style(path).generator()
    computed = () if mean else ("mean latent computed, the file has none",)
    assert known.notes == (*computed, "noise maps drawn, the file has none")
    plain = load_style_generator(write("maps.pt", full))
    for name, value in plain.state_dict().items():
        assert name.endswith("noise_const") or torch.equal(loaded.state_dict()[name], value), name
    draws = peers.np.random.RandomState(0)
    for map_ in loaded.noise_maps():
        drawn = torch.from_numpy(draws.standard_normal(tuple(map_.shape[-2:]))).float()
        assert torch.equal(map_.reshape(drawn.shape), drawn)
    z = torch.randn(2, 12)
    assert torch.equal(loaded(z, noise="none"), plain(z, noise="none"))
    del full["noises.noise_1"]
    assert refusal(write("some.pt", full)).endswith(": it lacks noises.noise_1")


@pytest.mark.parametrize("rows", [None, 1, 6])
def test_psp(tmp_path: Path, rows: int | None) -> None:
    state = rosinality(tmp_path / "g.pt")
    mean = torch.randn(12)
    held = {
        "state_dict": {
            "encoder.input_layer.0.weight": torch.randn(4, 3, 3, 3),
            **{f"decoder.{name}": value for name, value in state.items()},
        },
        "latent_avg": mean if rows is None else mean.repeat(rows, 1),
        "opts": {"output_size": 16, "device": "cuda:0", "checkpoint_path": None, "lpips_lambda": 0.8},
    }
    torch.save(held, tmp_path / "psp_ffhq_encode.pt")
    loaded = load_style_generator(tmp_path / "psp_ffhq_encode.pt")
    assert torch.equal(loaded.w_avg, mean)
    plain = load_style_generator(tmp_path / "g.pt")
    assert torch.equal(loaded.synthesis(plain.mapping(torch.ones(1, 12))), image_of_ones(plain))


def image_of_ones(generator: StyleGenerator) -> Tensor:
    return generator.synthesis(generator.mapping(torch.ones(1, 12)))


def test_lernapparat(tmp_path: Path) -> None:
    generator = peers.stylegan1(128, channel_base=128)
    path = tmp_path / "karras2019stylegan-ffhq-1024x1024.for_g_all.pt"
    torch.save(peers.lernapparat_state(generator), path)
    loaded = load_style_generator(path)
    made_up = ("noise_const", "w_avg")
    for name, value in generator.state_dict().items():
        assert name.endswith(made_up) or torch.equal(loaded.state_dict()[name], value), name
    z = torch.randn(2, 12)
    assert torch.equal(loaded(z, noise="none"), generator(z, noise="none"))
    assert loaded.fingerprint() == load_style_generator(path).fingerprint()
    assert abs(torch.cat([map_.flatten() for map_ in loaded.noise_maps()]).std() - 1) < 0.05


def test_other_dtypes(tmp_path: Path) -> None:
    """Half precision, bfloat16, double and channels-last weights are read as float32."""
    state = rosinality(tmp_path / "g.pt")
    kinds = {
        "style.1.weight": torch.float16,
        "style.2.weight": torch.bfloat16,
        "style.3.weight": torch.float64,
    }
    changed = {name: value.to(kinds.get(name, torch.float32)) for name, value in state.items()}
    changed["convs.0.conv.weight"] = (
        changed["convs.0.conv.weight"].transpose(3, 4).contiguous().transpose(3, 4)
    )
    torch.save({"g_ema": changed, "latent_avg": torch.zeros(12)}, tmp_path / "h.pt")
    loaded = load_style_generator(tmp_path / "h.pt").state_dict()
    for index, name in enumerate(kinds):
        assert torch.equal(loaded[f"mapping.fc{index}.weight"], changed[name].float())
    assert torch.equal(loaded["synthesis.b8.conv0.weight"], state["convs.0.conv.weight"][0])


# -------------------- what is refused


def refusal(path: Path, averaged: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        load_style_generator(path, averaged=averaged)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_stylegan3_is_refused(tmp_path: Path) -> None:
    root = peers.nvidia_generator(peers.stylegan2())
    root.state["_modules"]["synthesis"].state["_modules"]["input"] = peers.Persistent(
        "SynthesisInput", {"_parameters": {}, "_buffers": {}, "_modules": {}}
    )
    assert "StyleGAN3" in refusal(peers.write(tmp_path / "g.pkl", {"G_ema": root}))


@pytest.mark.parametrize(
    ("sides", "told"),
    [
        ((4, 2), "its images are not square: 16 x 8 px, from a constant of 4 x 2"),  # StyleGAN-Human's
        ((8, 8), "its constant is 8 x 8; known here is 4 x 4"),
    ],
)
def test_other_constants_are_refused(tmp_path: Path, sides: tuple[int, int], told: str) -> None:
    generator = peers.stylegan2()
    generator.synthesis.b4.const = nn.Parameter(torch.randn(8, *sides))
    for block in generator.synthesis.children():
        for layer in block.children():
            if hasattr(layer, "noise_const"):
                side = layer.noise_const.shape[0] // 4
                layer.noise_const = torch.randn(side * sides[0], side * sides[1])
    path = peers.write(tmp_path / "stylegan_human_v2.pkl", {"G_ema": peers.nvidia_generator(generator)})
    assert refusal(path) == f"{path}: not loaded: {told}"
    plain = rosinality(tmp_path / "g.pt")
    torch.save({"g_ema": plain | {"input.input": torch.randn(1, 8, *sides)}}, tmp_path / "h.pt")
    assert refusal(tmp_path / "h.pt").endswith(told)
    first = peers.lernapparat_state(peers.stylegan1())
    torch.save(first | {"g_synthesis.blocks.4x4.const": torch.randn(1, 8, *sides)}, tmp_path / "1.pt")
    assert refusal(tmp_path / "1.pt").endswith(told)


def test_progressive_configs_are_refused(tmp_path: Path) -> None:
    network = peers.tf_stylegan2(peers.stylegan2())
    synthesis = network.held["components"]["synthesis"].held
    synthesis["variables"] = [
        (name.replace("16x16/ToRGB", "ToRGB_lod0"), value) for name, value in synthesis["variables"]
    ]
    assert "configs b to d" in refusal(peers.write(tmp_path / "g.pkl", (network,) * 3))


def test_label_concat_is_refused_for_stylegan2(tmp_path: Path) -> None:
    network = peers.tf_stylegan2(peers.stylegan2(label_dim=3))
    mapping = network.held["components"]["mapping"].held
    mapping["variables"] = [
        (name.replace("LabelEmbed", "LabelConcat"), value) for name, value in mapping["variables"]
    ]
    assert "LabelConcat" in refusal(peers.write(tmp_path / "g.pkl", (network,) * 3))


def test_half_grown_stylegan1_is_refused(tmp_path: Path) -> None:
    network = peers.tf_stylegan1(peers.stylegan1())
    synthesis = network.held["components"]["synthesis"].held
    synthesis["variables"][0] = ("lod", peers.np.float32(1.5))
    assert "grown" in refusal(peers.write(tmp_path / "g.pkl", (network,) * 3))


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("nonlinearity", "relu", "its nonlinearity is relu; known here is lrelu"),
        ("architecture", "resnet", "its architecture is resnet; known here is skip"),
        ("resample_kernel", [1, 2, 1], "its resample_kernel is a list"),
        ("use_noise", False, "its use_noise is False"),
        ("normalize_latents", False, "its normalize_latents is False"),
    ],
)
def test_unknown_settings_are_named(tmp_path: Path, setting: str, value: object, told: str) -> None:
    network = peers.tf_stylegan2(peers.stylegan2(), **{setting: value})
    assert told in refusal(peers.write(tmp_path / "g.pkl", (network,) * 3))


ALONE = ": not loaded: averaged=false: the file holds the average alone"


def test_the_average_is_not_taken_for_the_last_weights(tmp_path: Path) -> None:
    rosinality(tmp_path / "ema.pt")
    torch.save(peers.lernapparat_state(peers.stylegan1()), tmp_path / "g_all.pt")
    peers.write(tmp_path / "ema.pkl", {"G_ema": peers.nvidia_generator(peers.stylegan2())})
    for name in ("ema.pt", "g_all.pt", "ema.pkl"):
        assert open_style(tmp_path / name).generator()[1].averaged
        assert refusal(tmp_path / name, averaged=False) == f"{tmp_path / name}{ALONE}"
    # One network by itself, of which nobody knows.
    path = peers.write(tmp_path / "g.pkl", peers.nvidia_generator(peers.stylegan2()))
    same(load_style_generator(path, averaged=False), peers.stylegan2())


def test_swagan_is_refused(tmp_path: Path) -> None:
    state = rosinality(tmp_path / "g.pt") | {"to_rgbs.0.iwt.ll": torch.ones(2, 2)}
    torch.save({"g_ema": state}, tmp_path / "s.pt")
    assert "SWAGAN" in refusal(tmp_path / "s.pt")


def test_another_filter_is_refused(tmp_path: Path) -> None:
    state = rosinality(tmp_path / "g.pt")
    state["convs.0.conv.blur.kernel"] = torch.ones(4, 4) / 4
    torch.save({"g_ema": state}, tmp_path / "f.pt")
    assert "low-pass filter" in refusal(tmp_path / "f.pt")


def test_other_files_are_told(tmp_path: Path) -> None:
    torch.save({"model.1.weight": torch.ones(3)}, tmp_path / "latest_net_G.pth")
    assert "no style-based generator" in refusal(tmp_path / "latest_net_G.pth")
    assert "no such file" in refusal(tmp_path / "absent.pkl")
    assert "checkpoints/last.ckpt" in refusal(tmp_path)
