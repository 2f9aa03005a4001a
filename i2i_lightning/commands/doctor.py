"""``i2i-doctor``: look at everything that a run needs, and say what is missing and what to do about it."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i2i_lightning.diagnosis.findings import Finding, Section

PROGRAM = "i2i-doctor"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Look at everything that a run needs: versions, devices, number formats, processes,"
        " SLURM, Weights & Biases, weights, disk, data and a few training steps. Takes half a minute.",
        epilog="Exit status: 0 if nothing is a PROBLEM, else 1. Nothing is changed, nothing is asked, and no"
        " key is shown.",
    )
    parser.add_argument("--json", metavar="FILE", help="also write it as JSON; - prints JSON instead")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="also time the pictures below this folder")
    parser.add_argument("--no-probe", action="store_true", help="leave out what takes time: data and steps")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run the console command."""
    arguments = parse_arguments(words)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a folder's name may have letters that the terminal lacks

    from i2i_lightning.types import UserError

    prints_page = arguments.json != "-"
    began = time.perf_counter()
    sections = []
    try:
        if prints_page:
            print(title(), flush=True)
        for section in examination(arguments.data, not arguments.no_probe):
            sections.append(section)
            if prints_page:
                print(f"\n{section.page()}", flush=True)
        result = as_dict(sections, time.perf_counter() - began)
        if prints_page:
            print(f"\n{verdict(result)}")
        if arguments.json is not None:
            write(result, arguments.json)
    except UserError as error:
        sys.exit(f"{PROGRAM}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: stopped")
    sys.exit(1 if result["problems"] else 0)


def examination(data: Path | None, probes: bool) -> Iterator[Section]:
    """Yield the sections of the page, each as soon as it is known.

    Args:
        data: Folder of pictures to time as well.
        probes: Whether to time data and a few steps.
    """
    from i2i_lightning.diagnosis import machine, surroundings
    from i2i_lightning.diagnosis.findings import Errand, examine

    # What waits for others runs meanwhile.
    meeting, reaching = Errand(surroundings.meet), Errand(surroundings.reach_wandb)
    yield examine("Versions", {"versions": lambda: machine.versions(commit())})
    yield examine(
        "Devices", {"cpu": machine.processor, "memory": machine.memory, "gpu": machine.accelerators}
    )
    # The two processes of the meeting would disturb what is timed after it.
    yield examine("Processes", {"distributed": lambda: surroundings.distributed(meeting)})
    yield examine("Number formats, and how fast they are beside fp32", _formats())
    yield examine("SLURM", {"slurm": surroundings.slurm})
    yield examine("Weights & Biases", {"wandb": lambda: surroundings.wandb(reaching)})
    yield examine("Weights of metrics and losses", {"weights": surroundings.metric_weights})
    yield examine("Disk", {"disk": surroundings.disk})
    speeds = _speeds(data, probes)
    if speeds:
        yield examine("Speed", speeds)


def _formats() -> dict[str, Callable[[], Iterable[Finding]]]:
    from i2i_lightning.diagnosis import machine

    try:
        devices = machine.devices()
    except Exception:  # torch does not even load; the section on devices has said why
        devices = []
    return {device: lambda device=device: machine.precision(device) for device in devices}  # type: ignore[misc]


def _speeds(data: Path | None, probes: bool) -> dict[str, Callable[[], Iterable[Finding]]]:
    from i2i_lightning.diagnosis import speed

    checks: dict[str, Callable[[], Iterable[Finding]]] = {}
    if probes:
        checks["data"] = speed.toyfaces
    if data is not None:
        checks["own data"] = lambda: speed.own_data(data.expanduser())
    if probes:
        checks["step"] = _probe
    return checks


def _probe() -> Iterator[Finding]:
    """Time the step that ``i2i-train method=pix2pix`` takes."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from lightning import seed_everything

    from i2i_lightning import config
    from i2i_lightning.cli.folders import conf_dir
    from i2i_lightning.diagnosis import machine, speed

    config.register()
    few = ["data.num_train=64", "data.num_val=4", "data.num_test=4"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", overrides=["method=pix2pix", "data=toyfaces", *few])
    with speed.quiet():
        seed_everything(composed.seed, verbose=False)
        method = instantiate(composed.method, _convert_="all")
        data = instantiate(composed.data, _convert_="all")
    yield from speed.probe(method, data, speed.best_accelerator(machine.devices()))


def commit() -> str | None:
    """Return the checkout's commit in short, and whether there are changes; None outside of a checkout."""
    from i2i_lightning.cli.record import git_state

    state = git_state()
    if state is None:
        return None
    return f"{state['commit'][:10]}{', with changes' if state['dirty'] else ''}"


def title() -> str:
    """Return the page's first line."""
    return f"{PROGRAM} on {platform.node() or 'this machine'}, {platform.system()} {platform.release()}"


def as_dict(sections: list[Section], seconds: float) -> dict[str, Any]:
    """Return the whole examination as plain containers."""
    from i2i_lightning.diagnosis.findings import SCHEMA

    return {
        "schema": SCHEMA,
        "program": PROGRAM,
        "machine": platform.node(),
        "platform": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 1),
        "problems": sum(section.count("problem") for section in sections),
        "notes": sum(section.count("note") for section in sections),
        "sections": [section.to_dict() for section in sections],
    }


def verdict(result: dict[str, Any]) -> str:
    """Return the page's last lines: what of it all needs doing."""
    wrong = [
        f"{section['title']}, {finding['name']}"
        for section in result["sections"]
        for finding in section["findings"]
        if finding["status"] == "problem"
    ]
    notes = f"{result['notes']} note{'' if result['notes'] == 1 else 's'}"
    if not wrong:
        return f"No problem, {notes}. ({result['seconds']:.0f} s)"
    count = f"{len(wrong)} PROBLEM{'' if len(wrong) == 1 else 'S'}, {notes}. ({result['seconds']:.0f} s)"
    return "\n".join([count, *(f"  {name}" for name in wrong)])


def write(result: dict[str, Any], place: str) -> None:
    """Write the examination as JSON to a file, or print it where ``place`` is ``-``.

    Raises:
        UserError: If the file cannot be written.
    """
    from i2i_lightning.types import UserError

    text = json.dumps(result, indent=2, allow_nan=False, default=str)
    if place == "-":
        print(text)
        return
    try:
        Path(place).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {place}: cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    main()
