"""Every config file composes, is checked, and builds what it names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from i2i_lightning import config
from i2i_lightning.cli.check import check_config, describe, fits, load_target
from i2i_lightning.types import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(path for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str, root: str = "train") -> DictConfig:
    return compose(root, overrides=list(overrides))


OF_INVERSION = {"callbacks=inversion", "data=targets", "loss=inversion", "method=w_plus_inversion"}
"""Options that only the root of i2i-invert can take, besides presets and their stages."""


def method_with(path: Path) -> str:
    """Return a method that an option goes with, by what the option's file says of itself."""
    note = path.read_text(encoding="utf-8")
    if "StyleGAN2" in note:  # networks without an input side, and data for them
        return "stylegan2"
    # An ablation changes weights that its own method has.
    return "cyclegan" if path.parent.name == "variant" and "CycleGAN" in note else "pix2pix"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_composes_and_checks(path: Path) -> None:
    group, option = path.parent.name, f"{path.parent.name}={path.stem}"
    if group in ("preset", "stage") or option in OF_INVERSION:
        choice = f"+stage@method.stages.another={path.stem}" if group == "stage" else option
        cfg = composed(choice, root="invert")
        check_config(cfg, config.SCHEMAS["invert"])
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        return
    if group == "operation":
        check_config(composed(option, root="edit"), config.SCHEMAS["edit"])
        return
    cfg = composed(f"method={method_with(path)}", option)
    check_config(cfg)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("path", [*FILES, CONF / "train.yaml"], ids=lambda path: path.stem)
def test_every_file_begins_with_a_note(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    notes = [line for line in lines[:3] if line.startswith("#") and not line.startswith("# @package")]
    assert notes, "say in the first lines what this option is"
    assert all(len(line) <= 130 for line in lines)


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_nodes_of_ours_list_every_option(path: Path) -> None:
    """A key that a file leaves out cannot be set from the shell without a ``+``: files list them all."""
    if "callbacks" in path.parts or "logger" in path.parts:
        pytest.skip("entries of these groups list what people change")
    for where, node in nodes(yaml.safe_load(path.read_text(encoding="utf-8"))):
        if str(node["_target_"]).startswith("i2i_lightning."):
            parameters = inspect.signature(load_target(where, node["_target_"])).parameters
            missing = set(parameters) - set(node)
            assert not missing, f"{where} leaves out {missing}"


def narrow(cfg: DictConfig) -> None:
    """Make the networks small, whatever they call their width."""
    for network in (cfg.generator, cfg.discriminator):
        for key, value in (("base_channels", 2), ("channel_base", 64)):
            if key in network:
                network[key] = value


@pytest.mark.parametrize("method", METHODS)
def test_methods_build(method: str) -> None:
    if method == "w_plus_inversion":
        pytest.skip("embeds in a generator that is loaded: see test_presets_build")
    cfg = composed(f"method={method}")
    narrow(cfg)
    built = instantiate(cfg.method, _convert_="all")
    assert type(built).__name__ == cfg.method._target_.rpartition(".")[2]


@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONF / "preset").glob("*.yaml")))
def test_presets_build(preset: str) -> None:
    from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator

    generator = StyleGAN2Generator(16, 3, 8, 8, mapping_layers=1, channel_base=64, channel_max=8)
    cfg = composed(f"preset={preset}", "loss.perceptual.name=substitute", root="invert")
    cfg.method.generator = None
    built = instantiate(cfg.method, _partial_=True, _convert_="all")(generator=generator)
    assert list(built.search.stages) == list(cfg.method.stages)
    assert built.steps_per_chunk(1) == sum(stage.steps for stage in cfg.method.stages.values())
    assert "arXiv" in Path(CONF, "preset", f"{preset}.yaml").read_text() or preset == "fast"


def test_training_refuses_an_inversion_in_one_line() -> None:
    cfg = composed("method=w_plus_inversion")
    check_config(cfg)
    with pytest.raises(InstantiationException) as slip:
        instantiate(cfg.method, _convert_="all")
    assert isinstance(slip.value.__cause__, UserError)
    assert "i2i-invert" in str(slip.value.__cause__)
    assert len(str(slip.value.__cause__).splitlines()) == 1


@pytest.mark.parametrize("group", ["generator", "discriminator"])
def test_cyclegan_takes_every_network(group: str) -> None:
    for path in sorted((CONF / group).glob("*.yaml")):
        if method_with(path) == "stylegan2":
            continue  # takes no image, or gives one logit for all of it
        cfg = composed("method=cyclegan", f"{group}={path.stem}")
        check_config(cfg)
        narrow(cfg)
        method = instantiate(cfg.method, _convert_="all")
        assert method.generator_ab is not method.generator_ba
        weights = [next(net.parameters()) for net in (method.generator_ab, method.generator_ba)]
        assert not torch.equal(*weights)


def test_cyclegan_goes_back_by_other_channels() -> None:
    overrides = ["method=cyclegan", "data.task=edges_to_photo", "loss.lambda_identity=0"]
    cfg = composed(*overrides, "discriminator.base_channels=8", "generator.num_blocks=2")
    check_config(cfg)
    method = cfg.method
    assert (method.generator_ab.in_channels, method.generator_ab.out_channels) == (1, 3)
    assert (method.generator_ba.in_channels, method.generator_ba.out_channels) == (3, 1)
    assert (method.discriminator_a.in_channels, method.discriminator_b.in_channels) == (1, 3)
    assert method.generator_ba.num_blocks == 2
    assert method.discriminator_a.base_channels == 8
    assert method.discriminator_a.norm == "instance"
    assert cfg.data._target_.endswith("ToyFacesUnpairedDataModule")
    assert composed("method=cyclegan", "data=unpaired").data._target_.endswith("UnpairedDataModule")
    plain = OmegaConf.to_container(method, resolve=True)
    assert plain["generator_ba"]["in_channels"] == 3  # type: ignore[call-overload, index]


@pytest.mark.parametrize("group", ["generator", "discriminator", "optimizer", "scheduler", "data"])
def test_options_build(group: str) -> None:
    for path in sorted((CONF / group).glob("*.yaml")):
        if f"{group}={path.stem}" in OF_INVERSION:
            continue  # takes what a loaded generator says
        cfg = composed(f"method={method_with(path)}", f"{group}={path.stem}")
        narrow(cfg)
        instantiate(cfg[group], _convert_="all")


def test_data_of_one_side_states_what_networks_need() -> None:
    overrides = ["method=stylegan2", "data=toyfaces_images", "data.crop_px=32"]
    cfg = composed(*overrides, "data.label=hair_style")
    check_config(cfg)
    networks = cfg.method.generator, cfg.method.discriminator
    assert [(net.size_px, net.channels, net.label_dim) for net in networks] == [(32, 3, 8)] * 2
    assert composed(*overrides).generator.label_dim == 0
    words = ["data.labels=folders", "data.label_dim=5", "data.channels=1", "data.crop_px=128"]
    cfg = composed("method=stylegan2", "data=images", *words)
    check_config(cfg)
    networks = cfg.method.generator, cfg.method.discriminator
    assert [(net.size_px, net.channels, net.label_dim) for net in networks] == [(128, 1, 5)] * 2


@pytest.mark.parametrize("data", ["images", "toyfaces_images"])
def test_a_translation_refuses_data_of_one_side(data: str) -> None:
    with pytest.raises(UserError) as slip:
        check_config(composed("method=pix2pix", f"data={data}"))
    assert str(slip.value) == (
        "generator.in_channels: this data has images of one side alone, and nothing to translate from; take "
        "data=paired or data=unpaired, or method=stylegan2"
    )


def test_precedence_is_shell_over_experiment_over_method() -> None:
    assert composed("experiment=pix2pix_facades").generator.num_downs == 8  # the experiment's generator
    assert composed("experiment=pix2pix_facades", "generator=resnet_6").generator.num_blocks == 6
    assert composed("experiment=pix2pix_facades").name == "pix2pix_facades"  # over the method's name
    assert composed("experiment=pix2pix_facades", "name=mine").name == "mine"
    assert composed("method=pix2pix").name == "pix2pix"
    assert composed("experiment=pix2pix_facades", "loss.lambda_l1=7").loss.lambda_l1 == 7
    assert composed("experiment=pix2pix_facades", "data.crop_px=128").data.crop_px == 128


def test_references_follow_what_they_refer_to() -> None:
    cfg = composed("data=paired", "data.crop_px=[64,96]", "data.in_channels=11", "trainer.max_epochs=50")
    assert cfg.generator.num_downs == 5
    assert cfg.generator.in_channels == 11
    assert cfg.discriminator.in_channels == 14
    assert cfg.scheduler.total_epochs == 50
    assert cfg.scheduler.decay_epochs == 25
    assert cfg.method.generator.num_downs == 5
    assert composed("data=paired", "method.conditional=false").discriminator.in_channels == 3
    assert composed("precision=bf16").precision._target_ == "i2i_lightning.strategies.precision.bf16"


def test_facades_experiment_is_the_papers() -> None:
    cfg = composed("experiment=pix2pix_facades")
    data = cfg.data
    assert (data.load_px, data.crop_px, data.batch_size, data.direction) == (286, 256, 1, "b_to_a")
    assert (cfg.trainer.max_epochs, cfg.scheduler.decay_epochs) == (200, 100)
    assert (cfg.loss.lambda_gan, cfg.loss.lambda_l1, cfg.loss.gan_mode) == (1, 100, "vanilla")
    assert (cfg.optimizer.lr, list(cfg.optimizer.betas)) == (2e-4, [0.5, 0.999])


@pytest.mark.parametrize(
    ("crop_px", "depth"),
    [(64, 6), (128, 7), (256, 8), (512, 8), (96, 5), ([128, 64], 6), (None, 8)],
)
def test_unet_depth(crop_px: Any, depth: int) -> None:
    assert config.unet_depth(crop_px) == depth


@pytest.mark.parametrize("crop_px", [0, -4, [], "64", [64, None], 100, [64, 48]])
def test_unet_depth_refuses(crop_px: Any) -> None:
    with pytest.raises(ValueError, match="crop_px"):
        config.unet_depth(crop_px)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+loss.lamda_l1=3"],
            "loss.lamda_l1: no such key. Did you mean loss.lambda_l1?\nloss has: gan_mode, la",
        ),
        (["loss.lambda_l1=abc"], "loss.lambda_l1='abc': give a number"),
        (["loss.lambda_l1=true"], "loss.lambda_l1=True: give a number"),
        (["loss.gan_mode=lsgn"], "loss.gan_mode='lsgn': give vanilla or lsgan or hinge or wgangp"),
        (["optimizer.betas=[0.5]"], "optimizer.betas=[0.5]: give a list of 2, each a number"),
        (["optimizer.lr=fast"], "optimizer.lr='fast': give a number"),
        (["+optimizer.learning_rate=1"], "optimizer.learning_rate: no such key"),
        (["trainer.max_epochs=x"], "trainer.max_epochs='x': give a whole number or null"),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs=1.5: give a whole number or null"),
        (["trainer.max_epochs=null"], "scheduler.total_epochs=null: give a whole number"),
        (
            ["+trainer.gradient_clip_val=1"],
            "trainer.gradient_clip_val: not to be set here; use method.clip_norm",
        ),
        (["+trainer.logger=false"], "trainer.logger: not to be set here; use the logger group"),
        (
            ["generator.num_downs=???"],
            "generator.num_downs: missing; give it a value: generator.num_downs=...",
        ),
        (["~generator.in_channels"], "generator.in_channels: UNet needs it"),
        (["generator.num_downs=${nowhere}"], "generator.num_downs: Interpolation key 'nowhere' not found"),
        (["method.generator=unet"], "method.generator='unet': give a node whose _target_ makes a Module"),
        (["loss._target_=os.system"], "loss._target_=os.system: a config may only name i2i_lightning.*"),
        (["loss._target_=i2i_lightning.methods.pix2pix.Pix2PixLos"], "Did you mean Pix2PixLoss?"),
        (["loss._target_=i2i_lightning.nowhere.X"], "no module named i2i_lightning.nowhere"),
        (
            ["+callbacks.galery.num_samples=3"],
            "callbacks.galery: no such key. Did you mean callbacks.gallery?",
        ),
        (["+callbacks.gallery.sampels=3"], "callbacks.gallery.sampels: no such key"),
        (["seed=-1"], "seed=-1: give a whole number from 0"),
        (["+extra=1"], "extra: no such key"),
    ],
)
def test_check_names_the_slip(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as slip:
        check_config(composed("data=paired", *overrides))
    assert message in str(slip.value)
    assert len(str(slip.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks.gallery=null"],
        ["~callbacks.gallery"],
        ["method.clip_norm=1"],
        ["trainer.devices=[0,1]"],
        ["trainer.limit_train_batches=0.5"],
        ["+trainer.max_time={hours: 2}"[1:]],
        ["data.crop_px=[64,128]"],
        ["data.root='a b'"],
        ["loss.lambda_l1=1"],
    ],
)
def test_check_lets_good_values_pass(overrides: list[str]) -> None:
    check_config(composed("data=paired", *overrides))


def test_fits_and_describe() -> None:
    assert fits(1, float)
    assert not fits(1.0, int)
    assert not fits(True, int)
    assert fits([1, 2], tuple[int, int])
    assert not fits([1, 2, 3], tuple[int, int])
    assert not fits("ab", list[str])
    assert not fits({"a": 1}, int)
    assert fits(None, int | None)
    assert not fits(None, int)
    assert fits("x", Any)
    assert describe(int | None) == "a whole number or null"
    assert describe(tuple[float, float]) == "a list of 2, each a number"
