"""``i2i-evaluate``: measure a trained generator on a split, beside what copying the input would give.

Of a generator without inputs, samples of fixed seeds are compared with the split's images as sets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from i2i_lightning.checkpoints.style.load import StyleFile
    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.record import Run
    from i2i_lightning.data.module import ImageDataModule
    from i2i_lightning.metrics.evaluation import Result
    from i2i_lightning.metrics.samples import Generate
    from i2i_lightning.networks.style import StyleGenerator
    from i2i_lightning.translation.translator import Translator

BATCH_SIZE = 16
"""Images translated together where all have one size; each comes out as it does alone."""

OF_RUN = "of_run"
"""The option of the group ``data`` that stands for the data of the evaluated run."""


def evaluate(run: Run) -> None:
    """Measure what ``run.config`` names; write ``metrics.json`` and ``samples.png``, and print the table."""
    from i2i_lightning.checkpoints.load import open_generator
    from i2i_lightning.checkpoints.style.load import find_style
    from i2i_lightning.metrics import evaluation
    from i2i_lightning.translation.translator import Translator, find_checkpoint
    from i2i_lightning.types import UserError

    config = run.config
    _check(config)
    checkpoint = find_checkpoint(config.checkpoint or config.run)
    folder = _output(config, checkpoint)
    style = find_style(checkpoint)
    if style is not None:
        facts, result = _of_samples(config, style)
        _report(run, checkpoint, folder, facts, {"samples": result})
        return
    device = None if config.device == "auto" else config.device
    # Images whole, as training saw them: tiles are for sizes that no data set is measured at.
    load = partial(Translator.load, checkpoint, device=device, test_mode=config.test_mode, tile_px=None)
    translators = {config.direction: load(direction=config.direction)} if config.direction else {}
    if not translators:
        directions = open_generator(checkpoint).directions
        translators = {direction: load(direction=direction) for direction in directions}
    data = data_for(config.data, config.split)
    if data.one_sided:
        raise UserError(
            f"data: {checkpoint} translates, and this data has images of one side alone; take data=paired or "
            "data=unpaired"
        )
    train_data = cache(lambda: data_for(config.data, "train"))

    found: dict[str, evaluation.Result] = {}
    for direction, translator in translators.items():
        other = translators.get(direction[::-1])
        found[direction] = evaluation.evaluate(
            _seeded(translator),
            data,
            config.split,
            direction=direction,
            names=config.metrics,
            palette=config.palette,
            seeds=list(config.seeds),
            max_images=config.max_images,
            weights=config.weights,
            device=translator.device,
            subset_seed=config.seed,
            train_data=None if config.split == "train" else train_data,
            back=None if other is None or other is translator else _seeded(other),
        )
    _report(run, checkpoint, folder, {"test_mode": translator.test_mode}, found)


def _of_samples(config: DictConfig, style: StyleFile) -> tuple[dict[str, Any], Result]:
    """Return facts about a generator without inputs, and its samples measured as a set."""
    from i2i_lightning.metrics.samples import evaluate_samples
    from i2i_lightning.translation.translator import find_device
    from i2i_lightning.types import UserError

    for key in ("direction", "palette", "test_mode"):
        if config[key] is not None:
            raise UserError(f"{key}={config[key]}: {style.where} makes images from noise; leave {key} out")
    generator, known = style.generator()
    data = data_for(config.data, config.split)
    if not data.one_sided:
        raise UserError(
            f"data: {style.where} makes images from noise; give one set of images to compare with: "
            "data=images data.root=... or data=toyfaces_images"
        )
    size_px = (generator.size_px, generator.size_px)
    for key, here, there in (
        ("crop_px", data.size_px, size_px),
        ("label_dim", data.label_dim, generator.label_dim),
        ("channels", data.in_channels, generator.channels),
    ):
        if here != there:
            raise UserError(f"data.{key}: {style.where} has {there}, the data {here}")
    device = find_device(config.device)
    result = evaluate_samples(
        _samples_of(generator.to(device)),
        data,
        config.split,
        names=config.metrics,
        seeds=list(config.seeds),
        max_images=config.max_images,
        weights=config.weights,
        device=device,
        subset_seed=config.seed,
        train_data=None if config.split == "train" else partial(data_for, config.data, "train"),
    )
    facts = {"generator": known.words, "averaged": known.averaged, "truncation": 1.0, "noise": "random"}
    return facts, result


def _samples_of(generator: StyleGenerator) -> Generate:
    """Return ``generator`` as an evaluation calls it: z and noise maps are functions of seed and name."""
    import torch

    from i2i_lightning.translation.modes import image_seed

    device = generator.w_avg.device

    @torch.no_grad()
    def generate(names: Sequence[str], label: Tensor | None, seed: int) -> Tensor:
        sources = [torch.Generator().manual_seed(image_seed(seed, name)) for name in names]
        z = torch.stack([torch.randn(generator.z_dim, generator=source) for source in sources])
        noise = [
            torch.stack([torch.randn(1, *shape, generator=source) for source in sources]).to(device)
            for shape in generator.noise_shapes
        ]
        labels = None if label is None else label.to(device)
        return generator(z.to(device), labels, noise=noise)  # type: ignore[no-any-return]

    return generate


def _report(
    run: Run, checkpoint: Path, folder: Path, facts: Mapping[str, Any], found: Mapping[str, Result]
) -> None:
    """Write what was found, and print the table.

    Args:
        run: What was asked for.
        checkpoint: What was evaluated.
        folder: Where to write.
        facts: What else is to be known of the generator.
        found: By direction, or under ``samples``: the results.
    """
    from i2i_lightning.cli import record
    from i2i_lightning.metrics.better import OTHER_BETTER
    from i2i_lightning.metrics.table import format_table

    config = run.config
    report = {
        "checkpoint": str(checkpoint),
        **facts,
        "seeds": list(config.seeds),
        "data": _described(config.data),
        "split": config.split,
        "directions": {direction: result.report() for direction, result in found.items()},
        "environment": record.environment(run),
    }
    _write(folder, report, found)
    for direction, result in found.items():
        way = f", {direction[0]} to {direction[1]}" if len(found) > 1 else ""
        images = f"{result.num_images} images of {config.split}, {result.sizes}"
        print(f"{record.shown(checkpoint)}{way}: {images}")
        print(format_table(result.rows, better=OTHER_BETTER), end="\n\n")
    print(f"Figures with their protocol: {record.shown(folder / 'metrics.json')}; beside it samples")


def _write(folder: Path, report: dict[str, Any], found: Mapping[str, Result]) -> None:
    """Write ``metrics.json``, and the samples of each direction."""
    from i2i_lightning.callbacks.previews import draw_grid, draw_sheet
    from i2i_lightning.checkpoints.io import write_beside
    from i2i_lightning.metrics.table import without_nan

    text = json.dumps(without_nan(report), indent=1) + "\n"
    write_beside(folder / "metrics.json", text)
    for direction, result in found.items():
        name = "samples.png" if len(found) == 1 else f"samples_{direction}.png"
        draw = draw_grid if "input" in result.samples[0] else draw_sheet
        write_beside(folder / name, partial(draw(result.samples).save, format="PNG"))


def _seeded(translator: Translator) -> Callable[[Tensor, Sequence[str], int], Tensor]:
    """Return ``translator`` as an evaluation calls it: the noise is a function of seed and name."""
    from i2i_lightning.translation.modes import image_seed

    def translate(images: Tensor, names: Sequence[str], seed: int) -> Tensor:
        return translator.network(images, [image_seed(seed, name) for name in names])

    return translate


def _check(config: DictConfig) -> None:
    from i2i_lightning.types import UserError

    if (config.run is None) == (config.checkpoint is None):
        raise UserError("say what to evaluate: run=<run folder>, or checkpoint=<file>")
    if config.split not in ("train", "val", "test"):
        raise UserError(f"split={config.split}: choose one of train, val, test")
    if not config.seeds:
        raise UserError("seeds=[]: give at least one")
    if config.max_images is not None and config.max_images < 1:
        raise UserError(f"max_images={config.max_images}: give at least 1, or null for all")
    if not config.data:
        raise UserError(
            f"checkpoint={config.checkpoint}: it lies in no run folder, so say on which images:\n"
            "data=paired data.root=... (and data.layout, data.direction, data.load_px, data.crop_px)"
        )


def data_for(node: DictConfig, split: str) -> ImageDataModule:
    """Return the data of ``node`` set up for ``split``, every image whole and none mirrored."""
    from hydra.utils import instantiate

    # Training images are cut at random from a larger size, and half are mirrored; measured ones are not.
    plain: dict[str, Any] = {"flip": False}
    if "load_px" in node and node.get("crop_px") is not None:
        plain["load_px"] = None
    if "epoch" in node:
        plain["epoch"] = "longer"
    data: ImageDataModule = instantiate(node, _convert_="all", **plain)
    data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    train_set: Any = data.train_set
    if hasattr(train_set, "augment"):
        train_set.augment = False
    if len(data.sizes_px) == 1:
        data.val_batch_size = max(data.val_batch_size, BATCH_SIZE)
    return data


def _described(node: DictConfig) -> dict[str, Any]:
    """Return what the protocol says of the data: everything that decides what the images are."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    speed = {"batch_size", "val_batch_size", "num_workers", "cache", "cache_dir"}
    training = {"flip", "load_px", "epoch"}
    return {str(key): value for key, value in plain.items() if key not in speed | training}


def _output(config: DictConfig, checkpoint: Path) -> Path:
    """Return the folder for the results, one for each checkpoint and split unless another is given.

    That one may write there is tried before anything is measured: an evaluation takes minutes.
    """
    from i2i_lightning.checkpoints.io import write_beside

    run = run_folder(checkpoint)
    name = f"{config.split}_{checkpoint.stem}"
    if config.max_images is not None:
        name += f"_first_{config.max_images}"
    if config.output is not None:
        folder = Path(config.output).expanduser()
    elif run is not None:
        folder = run / "evaluation" / name
    else:  # reference checkpoints are all called alike, in folders named after the model
        folder = Path("outputs", "evaluation", checkpoint.resolve().parent.name, name)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    trial = folder / ".trial"
    write_beside(trial, Path.touch)
    trial.unlink()
    for path in made:
        path.rmdir()
    return folder


def run_folder(path: Path) -> Path | None:
    """Return the run folder that ``path`` is or lies in, if there is one."""
    start = path.expanduser().resolve()
    for folder in (start, *start.parents[:2]):  # the folder itself, or a checkpoint in checkpoints/
        if (folder / "config.yaml").is_file() and (folder / "environment.json").is_file():
            return folder
    return None


def offer_data_of_run(arguments: Arguments) -> None:
    """Make the data of the run that is evaluated known as ``data=of_run``; empty where there is no run."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from i2i_lightning.types import UserError

    run, checkpoint = arguments.value("run"), arguments.value("checkpoint")
    folder = None if run is None and checkpoint is None else run_folder(Path(run or checkpoint or ""))
    if run is not None and (folder is None or folder != Path(run).resolve()):
        raise UserError(f"run={run}: not a run folder, it has no config.yaml")
    node: Any = {}
    if folder is not None:
        found = OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "data")
        # Other projects have a config.yaml too, and it may say something else under data.
        node = found if OmegaConf.is_dict(found) and "_target_" in found else {}
    ConfigStore.instance().store(group="data", name=OF_RUN, node=node)


APP = App(
    program="i2i-evaluate",
    config_name="evaluate",
    task=evaluate,
    prepare=offer_data_of_run,
    keeps_run=False,
)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
