"""``i2i-invert``: find the latents of a style-based generator that reproduce images."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App, is_first_process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from omegaconf import DictConfig

    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.record import Run
    from i2i_lightning.commands.fitting import Parts
    from i2i_lightning.methods.inversion.method import Inversion
    from i2i_lightning.networks.style import StyleGenerator

FRAMES = 8
"""Pictures of the morph that closes the demonstration."""
DONE_BY = {"style": "local_style_transfer", "mse_outside": "crossover"}
"""Terms of the objective whose images only edits have, and the operation of i2i-edit that has them."""


def invert(run: Run) -> None:
    """Embed the images that ``run.config`` names, or go on where an earlier run was stopped."""
    from i2i_lightning.cli import record
    from i2i_lightning.commands.fitting import fit
    from i2i_lightning.commands.generators import named_generator

    methods: list[Inversion] = []

    def parts(run: Run) -> Parts:
        from hydra.utils import instantiate

        config = run.config
        generator = named_generator(config.generator)
        stages = stages_of(config, generator)
        method = instantiate(config.method, generator=generator, stages=stages, _convert_="all")
        filled = {key: getattr(generator, key) for key in ("size_px", "channels", "label_dim")}
        refuse_idle(run, method, filled)
        methods.append(method)
        return instantiate(config.data, **filled, _convert_="all"), method

    fit(run, parts)
    if run.config.images is None and is_first_process():
        path = morph_strip(run.folder, methods[0], run.config.generator.path)
        if path is not None:
            print(f"Morph: {record.shown(path)}")


def stages_of(config: DictConfig, generator: StyleGenerator) -> dict[str, Any]:
    """Return the config's stages, with the rows of w_plus that words of theirs mean."""
    from omegaconf import OmegaConf

    from i2i_lightning.editing.mixing import rows_of

    stages: Any = OmegaConf.to_container(config.method.stages, resolve=True)
    for name, stage in stages.items():
        if stage is not None and stage.get("rows") is not None:
            stage["rows"] = rows_of(stage["rows"], generator.row_names, f"method.stages.{name}.rows")
    return dict(stages)


def refuse_idle(run: Run, method: Inversion, filled: Mapping[str, int]) -> None:
    """Refuse what would change nothing.

    Args:
        run: What was asked for.
        method: What came of it.
        filled: Options of the data that the generator decides.

    Raises:
        UserError: If one of these is given, or the number of epochs, or the weight of a term whose image no
            option gives.
    """
    from i2i_lightning.cli.arguments import split_override
    from i2i_lightning.types import UserError

    for key, value in filled.items():
        if run.config.data.get(key):
            raise UserError(
                f"data.{key}={run.config.data[key]}: the generator decides, {value}; leave it out"
            )
    if "trainer.max_epochs" in {split_override(word)[0] for word in run.overrides}:
        raise UserError(
            "trainer.max_epochs: every chunk of images takes one epoch; for fewer images give data.limit"
        )
    if run.checkpoint is not None or run.again:  # it may be of a time when weights were there without images
        return
    search = method.search
    for name, stage in search.stages.items():
        for term, operation in DONE_BY.items():
            if term in search.weights_of(stage):
                key = (
                    f"method.stages.{name}.weights.{term}" if term in stage.weights else f"loss.lambda_{term}"
                )
                raise UserError(
                    f"{key}={search.weights_of(stage)[term]:g}: i2i-invert has no image for this term; "
                    f"i2i-edit operation={operation} has"
                )


def morph_strip(folder: Path, method: Inversion, source: str) -> Path | None:
    """Write a strip from the first image that was found to the second, and return its path.

    Below what was found it has the latents alone, without noise maps and weights of their own: these bring an
    image close, and latents make the way.
    """
    from i2i_lightning.checkpoints.latents import Latent
    from i2i_lightning.sampling.edits.inputs import Reader, read_latents
    from i2i_lightning.sampling.edits.latents import between
    from i2i_lightning.sampling.edits.studio import Cell, Studio

    latents = read_latents(sorted((folder / "latents").glob("*.safetensors"))[:2])
    if len(latents) < 2:
        return None
    generator, loss = method.generator, method.search.loss
    studio = Studio(generator, source, folder, latents, Reader(generator), lambda: loss)
    found, alone = [], []
    for index in range(FRAMES):
        latent = between(latents[0], latents[1], index / (FRAMES - 1), studio)
        words = {0: latents[0].name, FRAMES - 1: latents[1].name}.get(index, "")
        found.append(Cell(latent, words))
        alone.append(Cell(Latent(latent.w_plus, latent.fingerprint), "latents alone" if index == 0 else ""))
    more = any(latent.noise is not None or latent.tuned is not None for latent in latents)
    studio.write_sheet("morph", [found, alone] if more else [found])
    return folder / "morph.png"


def prepare(parsed: Arguments) -> None:
    """Let ``generator=`` name a file, and rows be a list."""
    from i2i_lightning.cli.arguments import name_generator, split_override, take_as_text

    name_generator(parsed)
    keys = [split_override(word)[0] for word in parsed.overrides]
    take_as_text(parsed, [key for key in keys if re.fullmatch(r"method\.stages\.\w+\.rows", key)])


APP = App(
    program="i2i-invert",
    config_name="invert",
    task=invert,
    starts=("images", "resume"),
    prepare=prepare,
    epochs_decide=False,
)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
