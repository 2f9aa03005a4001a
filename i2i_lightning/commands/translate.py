"""``i2i-translate``: put a file, a folder or a pattern of images through a trained generator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.cli.app import App

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from i2i_lightning.cli.record import Run
    from i2i_lightning.translation.files import Found, Job, Reader
    from i2i_lightning.translation.folder import Outcome
    from i2i_lightning.translation.translator import Translator


def translate(run: Run) -> None:
    """Translate what ``run.config`` names, skip what an earlier run has done, and say what became of all."""
    from i2i_lightning.cli import record
    from i2i_lightning.data.checks import check_choice
    from i2i_lightning.data.decode import CONVERSIONS
    from i2i_lightning.translation.files import Reader, find_inputs, plan_jobs, remove_leavings
    from i2i_lightning.translation.folder import split_done
    from i2i_lightning.translation.translator import Translator, find_checkpoint
    from i2i_lightning.types import UserError, height_width

    config = run.config
    for key, choices in (("convert", CONVERSIONS), ("side", ("left", "right")), ("half", ("bf16", "fp16"))):
        if config[key] is not None:
            check_choice(key, config[key], choices)
    if config.batch_size is not None and config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: must be at least 1")
    size = None if config.resize_px is None else height_width(config.resize_px, "resize_px")
    output = Path(config.output).expanduser()
    # First what is quickly checked, then the weights.
    found = find_inputs(config.input, leave_out=output)
    translator = Translator.load(
        config.checkpoint,
        direction=config.direction,
        device=config.device,
        precision=config.half or "fp32",
        test_mode=config.test_mode,
        seed=config.seed,
        tile_px=config.tile_px,
        averaged=config.averaged,
        dropout=config.dropout,
    )
    reader = Reader(translator.input, config.convert or translator.input.convert, config.side, size)
    jobs = plan_jobs(found, config.output, config.format, translator.output)
    to_a_file = found.is_file and jobs[0].output == output
    if not to_a_file:
        settings = _settings(config, translator, reader)
        checkpoint = record.shown(find_checkpoint(config.checkpoint))
        left, there = split_done(jobs, output, settings, checkpoint, config.overwrite)
    elif output.exists() and not config.overwrite:
        raise UserError(f"output={config.output}: is there already; overwrite=true replaces it")
    else:
        left, there = jobs, 0
    remove_leavings(left)
    outcome = _work(translator, left, there, reader, config.batch_size)
    _summarise(config, found, there, outcome)
    if outcome.failed:
        failed = f"{len(outcome.failed):,} of {len(jobs):,} images failed"
        raise UserError(f"{failed}, for the reasons above; the others are done")


def _settings(config: DictConfig, translator: Translator, reader: Reader) -> dict[str, Any]:
    """Return all that an output depends on beside its input, as plain values."""
    from i2i_lightning.translation.folder import weights_digest

    return {
        "weights": weights_digest(translator.generator),
        "direction": translator.direction,
        "test_mode": translator.test_mode,
        "seed": translator.seed,
        "dropout": config.dropout,
        "half": config.half,
        "tile_px": translator.tile_px,
        "resize_px": None if reader.size is None else list(reader.size),
        "side": reader.side,
        "convert": reader.convert,
        "format": config.format,
    }


def _work(
    translator: Translator, jobs: list[Job], there: int, reader: Reader, batch_size: int | None
) -> Outcome:
    """Translate ``jobs`` under a progress bar; ``there`` others were done before."""
    from torch import OutOfMemoryError
    from tqdm import tqdm  # type: ignore[import-untyped]

    from i2i_lightning.translation.folder import Outcome, Stopped, translate_files
    from i2i_lightning.types import UserError

    outcome = Outcome()
    total = there + len(jobs)
    with tqdm(total=total, initial=there, unit="image", leave=False, dynamic_ncols=True, disable=None) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        try:
            translate_files(translator, jobs, reader, outcome, batch_size, progress)
        except KeyboardInterrupt:
            done = f"{there + outcome.translated:,} of {total:,} are done"
            raise KeyboardInterrupt(f"{done}; the same command goes on") from None
        except Stopped as stop:
            done = f"{there + outcome.translated:,} of {total:,} are done"
            raise UserError(f"{stop}\n{done}; once that is mended, the same command goes on") from None
        except OutOfMemoryError:
            lower = f"tile_px (now {translator.tile_px}) or batch_size"
            raise UserError(f"device={translator.device}: out of memory; lower {lower}") from None
    return outcome


def _summarise(config: DictConfig, found: Found, there: int, outcome: Outcome) -> None:
    """Print a line on what was done, one on files that are no images, and one for each way to fail."""
    from i2i_lightning.data.checks import first_names, group_problems

    parts = [f"{outcome.translated:,} translated"]
    if there:
        parts.append(f"{there:,} already there")
    if outcome.failed:
        parts.append(f"{len(outcome.failed):,} failed")
    speed = f", {outcome.translated / outcome.seconds:.3g} images/s" if outcome.translated else ""
    print(f"{', '.join(parts)}: {config.output}{speed}")
    if found.others:
        print(f"{len(found.others):,} not images by their suffix: {first_names(found.others)}")
    for line, _ in group_problems(outcome.failed):
        print(f"  {line}", file=sys.stderr)


APP = App(program="i2i-translate", config_name="translate", task=translate, keeps_run=False)


def main() -> None:
    """Run the console command."""
    sys.exit(APP.main())


if __name__ == "__main__":
    main()
