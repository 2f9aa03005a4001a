"""``i2i-invert``: find the latents of a style-based generator that reproduce images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from i2i_lightning.cli.app import App, is_first_process

if TYPE_CHECKING:
    from pathlib import Path

    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.record import Run
    from i2i_lightning.commands.fitting import Parts
    from i2i_lightning.networks.style import StyleGenerator

FRAMES = 8
"""Pictures of the morph that closes the demonstration."""


def invert(run: Run) -> None:
    """Embed the images that ``run.config`` names, or go on where an earlier run was stopped."""
    from i2i_lightning.cli import record
    from i2i_lightning.commands.fitting import fit

    generators: list[StyleGenerator] = []

    def parts(run: Run) -> Parts:
        from hydra.utils import instantiate

        method = instantiate(run.config.method, _convert_="all")
        generators.append(method.generator)
        wanted = {key: getattr(method.generator, key) for key in ("size_px", "channels", "label_dim")}
        return instantiate(run.config.data, **wanted, _convert_="all"), method

    fit(run, parts)
    if run.config.images is None and is_first_process():
        path = morph_strip(run.folder, generators[0])
        if path is not None:
            print(f"Morph: {record.shown(path)}")


def morph_strip(folder: Path, generator: StyleGenerator) -> Path | None:
    """Write a strip from the first image that was found to the second, and return its path."""
    import torch

    from i2i_lightning.checkpoints.latents import load_latent
    from i2i_lightning.editing.transfer import morph
    from i2i_lightning.sampling.pictures import to_picture, write_png
    from i2i_lightning.sampling.sheets import Layout, Sheet, tile_side

    latents = [load_latent(path) for path in sorted((folder / "latents").glob("*.safetensors"))[:2]]
    if len(latents) < 2:
        return None
    place = generator.w_avg
    first, last = (latent.w_plus.to(place) for latent in latents)
    sheet = Sheet(Layout(FRAMES, 1, tile_side(generator.size_px, None)))
    with torch.no_grad():
        for column, w_plus in enumerate(morph(first, last, FRAMES)):
            image = generator.synthesis(w_plus[None])[0]
            words = {0: latents[0].name, FRAMES - 1: latents[1].name}.get(column, "")
            sheet.put(column, 0, to_picture(image.float().cpu()), words)
    path = folder / "morph.png"
    write_png(path, sheet.image, {})
    return path


def prepare(parsed: Arguments) -> None:
    """Let ``generator=`` name a file."""
    from i2i_lightning.cli.arguments import name_generator

    name_generator(parsed)


APP = App(
    program="i2i-invert", config_name="invert", task=invert, starts=("images", "resume"), prepare=prepare
)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
