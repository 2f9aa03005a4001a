"""``i2i-sample``: draw pictures with a style-based generator: grids, mixing matrices, interpolations."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App

if TYPE_CHECKING:
    from i2i_lightning.cli.arguments import Arguments
    from i2i_lightning.cli.record import Run
    from i2i_lightning.sampling.folder import Gallery
    from i2i_lightning.sampling.request import Request

LISTS = ("seeds", "label", "interpolate", "mixing.rows", "mixing.columns", "mixing.layers")
"""Keys whose value may hold commas."""


def sample(run: Run) -> None:
    """Draw what ``run.config`` asks for, and say what was written."""
    from omegaconf import OmegaConf

    from i2i_lightning.cli import record
    from i2i_lightning.commands.generators import open_generator
    from i2i_lightning.commands.output import check_output, output_folder
    from i2i_lightning.sampling.folder import Gallery
    from i2i_lightning.sampling.request import Request
    from i2i_lightning.sampling.sampler import Sampler
    from i2i_lightning.translation.translator import find_device
    from i2i_lightning.types import UserError

    options: Any = OmegaConf.to_container(run.config, resolve=True)
    # First what is quickly checked, then the weights.
    request = Request.read(options)
    device = find_device(options["device"])
    check_output(options["output"], options["overwrite"])
    if options["tile_px"] is not None and options["tile_px"] < 8:
        raise UserError(f"tile_px={options['tile_px']}: give at least 8")
    source = options["generator"]["path"]
    generator, _ = open_generator(source)
    wanted = {key: options[key] for key in ("truncation", "cutoff", "noise", "batch_size")}
    sampler = Sampler(generator, device, **wanted)
    gallery = Gallery(sampler, Path(), source, options["tile_px"])
    request.check(sampler, gallery)
    began = time.perf_counter()
    with output_folder(options["output"], "sample") as gallery.folder:
        written = _draw(request, gallery)
    speed = request.num_images / (time.perf_counter() - began)
    name, fingerprint = (gallery.notes[key] for key in ("generator", "fingerprint"))
    about = f"{name}, {generator.size_px} px, fingerprint {fingerprint}"
    print(f"{record.shown(gallery.folder)}: {about}, {speed:.3g} images/s")
    for line in written:
        print(f"  {line}")


def _draw(request: Request, gallery: Gallery) -> list[str]:
    """Draw under a progress bar."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from i2i_lightning.cli import record
    from i2i_lightning.types import UserError

    sampler = gallery.sampler
    with tqdm(total=request.num_images, unit="image", leave=False, dynamic_ncols=True, disable=None) as bar:
        drawn = 0

        def progress() -> None:
            nonlocal drawn
            drawn += 1
            bar.update()

        gallery.progress = progress
        try:
            return request.draw(gallery)
        except KeyboardInterrupt:
            done = f"{drawn:,} of {request.num_images:,} images were drawn"
            raise KeyboardInterrupt(f"{done}; finished files are in {record.shown(gallery.folder)}") from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):
                raise
            now = f"batch_size (now {sampler.batch_size})"
            raise UserError(f"device={sampler.device}: out of memory; lower {now}") from None


def prepare(parsed: Arguments) -> None:
    """Let lists of seeds be one value, and ``generator=`` name a file."""
    from i2i_lightning.cli.arguments import name_generator, take_as_text

    name_generator(parsed)
    take_as_text(parsed, LISTS)


APP = App(program="i2i-sample", config_name="sample", task=sample, prepare=prepare, keeps_run=False)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
