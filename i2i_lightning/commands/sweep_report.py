"""``i2i-sweep-report``: what came of a sweep, as CSV, Markdown and one HTML page; also while it runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PROGRAM = "i2i-sweep-report"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="What came of a sweep: settings and figures best first, mean and deviation over seeds,"
        " curves, and the same held-out inputs side by side.",
        epilog="Takes any folder with runs below it: of i2i-train --multirun, of a SLURM array, of a study by"
        " Optuna, or runs that were started one by one. A sweep may still be running. Writes report.html,"
        " report.md, report.csv (a row for each variant) and runs.csv (a row for each run).",
    )
    parser.add_argument(
        "folder", type=Path, help="folder of the sweep, such as outputs/pix2pix_toy/multirun/..."
    )
    parser.add_argument("--output", type=Path, help="folder to write into (the sweep's own)")
    parser.add_argument("--by", metavar="FIGURE", help="rank by this figure: judge_iou, val/psnr, ...")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run the console command."""
    arguments = parse_arguments(words)

    from i2i_lightning.types import UserError

    try:
        write(arguments.folder.expanduser(), arguments.output, arguments.by)
    except UserError as error:
        sys.exit(f"{PROGRAM}: {error}")
    except OSError as error:
        sys.exit(f"{PROGRAM}: {error.filename or arguments.output}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: stopped")


def write(folder: Path, output: Path | None = None, ranked_by: str | None = None) -> Path:
    """Write the report of the runs below ``folder``, print its table, and return the page's path.

    Raises:
        UserError: If there are no runs, or none has the figure to rank by.
    """
    from i2i_lightning.cli.lock import is_running
    from i2i_lightning.cli.planned import planned_jobs
    from i2i_lightning.sweeps.page import page
    from i2i_lightning.sweeps.tables import markdown, runs_csv, summary, variants_csv, variants_table
    from i2i_lightning.sweeps.variants import read_sweep

    sweep = read_sweep(folder, ranked_by, is_running, planned_jobs(folder))
    place = folder if output is None else output.expanduser()
    place.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.csv": variants_csv(sweep),
        "runs.csv": runs_csv(sweep),
        "report.md": markdown(sweep),
        "report.html": page(sweep, place),
    }
    for name, text in texts.items():
        beside = place / f".{name}.{os.getpid()}.tmp"
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, place / name)
    print(summary(sweep))
    print(variants_table(sweep))
    print(f"Report: {place / 'report.html'}; beside it report.md, report.csv, runs.csv")
    return place / "report.html"


if __name__ == "__main__":
    main()
