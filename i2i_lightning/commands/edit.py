"""``i2i-edit``: edit latents and pictures with a style-based generator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from i2i_lightning.checkpoints.latents import Latent
    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.record import Run
    from i2i_lightning.methods.inversion import InversionLoss
    from i2i_lightning.sampling.edits.studio import Studio

LISTS = ("seeds", *(f"operation.{key}" for key in ("rows", "strengths", "box", "to")))
"""Keys whose value may hold commas."""
FILES = ("latents", "paste", *(f"operation.{key}" for key in (
    "inside", "around", "mask", "image", "hole", "photo", "scribbled", "content", "style", "file", "of",
    "labels", "labelled", "orthogonal_to",
)))  # fmt: skip
"""Keys whose value names files, and is taken literally."""


def edit(run: Run) -> None:
    """Make the edit that ``run.config`` asks for, and say what was written."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from i2i_lightning.cli import record
    from i2i_lightning.commands.output import output_folder
    from i2i_lightning.types import UserError

    config = run.config
    options: Any = OmegaConf.to_container(config, resolve=True)
    # First what is quickly checked, then the weights.
    operation = instantiate(config.operation, _convert_="all")
    if options["paste"] is not None and not getattr(operation, "pastes", False):
        raise UserError(
            f"paste={options['paste']}: edits of latents alone are put back: {_operations('pastes')}; "
            "edits in masks are with align=true"
        )
    if options["align"] and not getattr(operation, "reads_pictures", False):
        raise UserError(
            f"align=true: this edit reads no pictures; {_operations('reads_pictures')} do "
            "(expression_transfer with operation.neutral and operation.expressive alone)"
        )
    studio = _studio(config, options, operation.takes)
    with output_folder(options["output"], "edit") as studio.folder:
        _run(operation, studio)
        studio.write_record({key: value for key, value in options.items() if key != "debug"})
    print(f"{record.shown(studio.folder)}: {studio.about['generator']}, {studio.generator.size_px} px")
    for line in [*studio.written, *(f"note: {note}" for note in studio.notes)]:
        print(f"  {line}")
    for name, value in studio.figures.items():
        print(f"  {name}: {value:.4g}")


def _operations(mark: str) -> str:
    """Return the names of the operations that bear a mark."""
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    from i2i_lightning.cli.folders import conf_dir

    files = sorted((conf_dir() / "operation").glob("*.yaml"))
    return ", ".join(file.stem for file in files if hasattr(get_class(OmegaConf.load(file)._target_), mark))


def _studio(config: Any, options: dict[str, Any], takes: int) -> Studio:
    """Load the generator and what is to be edited.

    Args:
        config: The config.
        options: The same as plain containers.
        takes: Latents that the edit takes at least.
    """
    from hydra.utils import instantiate

    from i2i_lightning.checkpoints import load_style_generator
    from i2i_lightning.commands.generators import open_generator
    from i2i_lightning.commands.output import check_output
    from i2i_lightning.data.checks import check_choice
    from i2i_lightning.sampling.edits.inputs import Reader
    from i2i_lightning.sampling.edits.studio import Studio
    from i2i_lightning.sampling.sampler import Sampler
    from i2i_lightning.sampling.videos import Animation
    from i2i_lightning.translation.translator import find_device
    from i2i_lightning.types import UserError

    device = find_device(options["device"])
    check_output(options["output"], options["overwrite"])
    check_choice("convert", options["convert"], ("none", "match"))
    if options["tile_px"] is not None and options["tile_px"] < 8:
        raise UserError(f"tile_px={options['tile_px']}: give at least 8")
    video = options["video"]
    if video["frames"] < 0:
        raise UserError(f"video.frames={video['frames']}: give 0, for no animation, or more")
    animation = Animation(video["format"], video["fps"], video["loop"]) if video["frames"] else None
    effort = instantiate(config.effort, _convert_="all")
    source = options["generator"]["path"]
    generator, about = open_generator(source)
    sampler = Sampler(generator, device, options["truncation"])
    latents = _latents(options, sampler, source, takes)
    label = sampler.one_hot(options["label"]) if takes == 0 or options["label"] is not None else None

    photo = None
    if options["paste"] is not None:
        asked = f"paste={options['paste']}"
        photo = Reader(generator, options["convert"], True, asked).picture("paste", options["paste"])

    def loss() -> InversionLoss:
        made: InversionLoss = instantiate(config.loss, _convert_="all")
        return made

    return Studio(
        generator,
        source,
        Path(),
        latents,
        Reader(generator, options["convert"], options["align"]),
        loss,
        effort,
        animation,
        video["frames"],
        None if label is None else label[None],
        options["seed"],
        options["tile_px"],
        load_style_generator,
        "ToyFaces" in str((about.provenance or {}).get("data")),
        read_faces,
        photo,
    )


def _latents(options: dict[str, Any], sampler: Any, source: str, takes: int) -> list[Latent]:
    """Return what ``latents=`` or ``seeds=`` name; where nothing is said, the first seeds."""
    from i2i_lightning.sampling.edits.inputs import latent_files, latents_of_seeds, read_latents, seeds_of
    from i2i_lightning.types import UserError

    if options["latents"] is not None and options["seeds"] is not None:
        raise UserError("latents, seeds: both given; an edit takes one of them")
    if options["latents"] is not None:
        return read_latents(latent_files(options["latents"]))
    seeds = list(range(takes)) if options["seeds"] is None else seeds_of(options["seeds"])
    return latents_of_seeds(seeds, sampler, options["label"], source) if seeds else []


def read_faces(images: Tensor) -> Mapping[str, Tensor]:
    """Return what the judge reads off toy faces (N, 3, H, W): by name, (N,) each."""
    from i2i_lightning.data.toyfaces.parameters import VECTOR_NAMES
    from i2i_lightning.metrics.judge import load_judge

    parameters = load_judge(images.device).read(images).parameters.cpu()
    return dict(zip(VECTOR_NAMES, parameters.unbind(1), strict=True))


def _run(operation: Any, studio: Studio) -> None:
    """Make the edit under a progress bar."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from i2i_lightning.types import UserError

    with tqdm(unit="image", leave=False, dynamic_ncols=True, disable=None) as bar:
        studio.progress = bar.update
        try:
            operation.run(studio)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):
                raise
            device = studio.generator.w_avg.device
            raise UserError(
                f"device={device}: out of memory; take device=cpu, or a smaller generator"
            ) from None


def prepare(parsed: Arguments) -> None:
    """Let lists and file names be one value, and ``generator=`` name a file."""
    from i2i_lightning.cli.arguments import is_quoted, name_generator, quote, split_override, take_as_text

    name_generator(parsed)
    take_as_text(parsed, LISTS)
    if parsed.multirun:
        return
    for index, word in enumerate(parsed.overrides):
        key, value = split_override(word)
        if value is None or value in ("", "null") or value.startswith("[") or is_quoted(value):
            continue
        if key in FILES or (key in LISTS and "," in value):
            parsed.overrides[index] = word[: word.index("=") + 1] + quote(value)


APP = App(program="i2i-edit", config_name="edit", task=edit, prepare=prepare, keeps_run=False)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
