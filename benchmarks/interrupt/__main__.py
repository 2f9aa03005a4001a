"""Kill training at random moments, continue it, and compare the end with a run that was never disturbed.

Usage, the second one with two processes that train together, the third on one method::

    python -m benchmarks.interrupt --times 50 --output interrupt.json
    python -m benchmarks.interrupt --times 20 --ranks 2
    python -m benchmarks.interrupt --times 10 --methods pix2pix --moments saving resuming --fresh

The runs are tiny and have all that a run can lose: dropout, an average of the weights, a schedule, batches
accumulated for one step, pools of earlier fakes, a gradient scaler, lazy regularisers and what they remember,
augmentation that adapts, a cache of decoded pictures on disk, validation, previews, a gallery, and a
checkpoint every other batch. What is run is ``i2i-train ... hydra.run.dir=<folder> resume=auto``, the same
command line each time. SIGKILL goes to the whole process group, at a moment drawn from these, in equal
shares:

* ``starting``, ``resuming``: from the command line to the first batch, the first time and a later one;
* ``cache``: decoded pictures are being written;
* ``step``: a training step; ``validating``: the validation set is being translated and measured;
* ``saving``: a checkpoint is being written, sealed, renamed, or the ones before it given other names;
* ``writing``: a row of ``metrics.csv``, a preview, the gallery.

Which function of the moment, which of its calls, and where in it are drawn, too. Half of the kills fall on a
line of Python code, any of the call being as likely as any other, so that what takes no time, between two
renames say, is hit as well. The other half fall on a point of time, and hit what takes time: a kernel, a
write. These come from a process of their own, which does nothing else, and therefore in the midst of a system
call if it must be.

One run is killed several times in a row before it may end. Then its weights, optimisers, random states,
averages and pools, ``metrics.csv`` and previews are compared with the undisturbed run's, bit by bit, and
every file that is left is read. What measures time is left out of the comparison (``perf/...``). After every
single kill, every file that has the name of a checkpoint or a picture must be a whole one.

A process that has imported everything already is forked for each attempt; ``--fresh`` starts new
interpreters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.interrupt.attempts import Ending, Order, import_all, run_attempt
from benchmarks.interrupt.compare import compare, unreadable
from benchmarks.interrupt.fuse import MOMENTS, RESUMING, SPOTS, STARTING, Plan

METHODS = ("pix2pix", "cyclegan", "stylegan2")
SIZE_PX, EPOCHS, TRAIN_PICTURES, BATCH = 32, 4, 10, 2
KILLS_OF_A_RUN = 5
AT_THE_BEGINNING = (STARTING, RESUMING, "cache")
"""Moments that come once in an attempt; the others come again and again, and their place is drawn."""


def command_line(method: str, data: Path, chain: Path, ranks: int) -> list[str]:
    """Return the words of ``i2i-train`` for a tiny run into ``chain/run``, its cache in ``chain/cache``."""
    widths = ["generator.base_channels=4", "discriminator.base_channels=4", "method.ema_decay=0.9"]
    words = {
        "pix2pix": [
            *widths,
            "method=pix2pix",
            "data=paired",
            f"data.root={data / 'pairs'}",
            "data.num_workers=1",
            "generator.dropout=paper",
            "discriminator.num_layers=2",
            "method.accumulate_batches=2",
            "method.clip_norm=1.0",
        ],
        "cyclegan": [
            *widths,
            "method=cyclegan",
            "data=unpaired",
            f"data.root={data / 'unpaired'}",
            "data.num_workers=0",
            "generator=unet",
            "generator.dropout=paper",
            "generator.norm=instance",
            "discriminator.num_layers=1",
            "method.pool_size=3",
            "method.augment=[translation]",
            "precision=fp16",
        ],
        "stylegan2": [
            "method=stylegan2",
            "data=images",
            f"data.root={data / 'pairs'}",
            "data.num_workers=1",
            "generator.channel_base=64",
            "generator.channel_max=8",
            "discriminator.channel_base=64",
            "discriminator.channel_max=8",
            "generator.z_dim=8",
            "generator.w_dim=8",
            "generator.mapping_layers=2",
            "loss.r1_interval=3",
            "loss.path_length_interval=2",
            "method.ema_half_life_kimg=0.01",
            "variant=ada",
            "method.adaptive.interval=2",
            "method.adaptive.speed_kimg=0.1",
            "method.adaptive.initial=0.5",
        ],
    }[method]
    spread = ["trainer=cpu"]
    if ranks > 1:
        spread = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}"]
    return [
        *words,
        f"data.load_px={SIZE_PX + 4}",
        f"data.crop_px={SIZE_PX}",
        f"data.batch_size={BATCH}",
        "data.cache=disk",
        f"data.cache_dir={chain / 'cache'}",
        *spread,
        f"trainer.max_epochs={EPOCHS}",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "callbacks.checkpoints.every_n_batches=2",
        "callbacks.checkpoints.keep_every_n_epochs=2",
        "callbacks.previews.num_samples=2",
        f"hydra.run.dir={chain / 'run'}",
        "resume=auto",
    ]


def make_pictures(folder: Path, seed: int) -> None:
    """Write a few pairs, and two sets without pairs, of smooth random colours as PNG files."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)

    def picture(path: Path, width_px: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((width_px, SIZE_PX + 8), Image.Resampling.BICUBIC).save(path)

    for split, count in (("train", TRAIN_PICTURES), ("val", 4)):
        for index in range(count):
            picture(folder / "pairs" / split / f"{index}.png", 2 * SIZE_PX + 16)
            for side in "AB":
                picture(folder / "unpaired" / f"{split}{side}" / f"{index}.png", SIZE_PX + 8)


@dataclass
class Kill:
    """One kill and what came of it.

    Args:
        moment: The moment that was hit.
        where: Function, which call of it, and line or time in it.
        unreadable: Files that were not whole after it, although their names say so.
        resumed: Whether the next attempt took the run up.
    """

    moment: str
    where: str
    unreadable: list[str] = field(default_factory=list)
    resumed: bool = False


@dataclass
class Chain:
    """One run that was killed several times, and how it ended.

    Args:
        method: What it trained.
        kills: The kills, in order.
        differences: What differs from the undisturbed run; empty if nothing does.
        failure: Why it could not be continued, with the end of its log.
    """

    method: str
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether the run ended as if it had never been killed."""
        return not self.differences and not self.failure


@dataclass(frozen=True)
class Reference:
    """The undisturbed run, and how long its stretches are.

    Args:
        folder: Where its run folder and its cache are.
        seconds: For each spot, the seconds of each of its stretches in order.
        lines: The same in lines of Python code.
    """

    folder: Path
    seconds: Mapping[str, list[float]]
    lines: Mapping[str, list[int]]


@dataclass(frozen=True)
class Harness:
    """What all runs have in common.

    Args:
        folder: Where all is written.
        ranks: Processes of a run.
        fresh: Start new interpreters.
        say: Takes lines about the progress.
    """

    folder: Path
    ranks: int = 1
    fresh: bool = False
    say: Callable[[str], None] = print

    def attempt(self, method: str, chain: Path, plan: Plan, is_first: bool) -> Ending:
        """Run one attempt at ``chain``."""
        words = command_line(method, self.folder / "data", chain, self.ranks)
        return run_attempt(Order(tuple(words), plan, chain, is_first), self.ranks, self.fresh)

    def reference(self, method: str) -> tuple[Reference, list[str]]:
        """Make two undisturbed runs: one to compare with, and one, compared, that counts lines of code.

        Raises:
            RuntimeError: If one of them fails.
        """
        measured = {}
        for measure in ("time", "lines"):
            chain = self.folder / f"{method}_{measure}"
            chain.mkdir()
            ending = self.attempt(method, chain, Plan(measure=measure), is_first=True)
            if ending.code != 0:
                log = tail(ending.log)
                raise RuntimeError(f"an undisturbed run of {method} ended with {ending.code}:\n{log}")
            measured[measure] = self._stretches(chain)
        first = self.folder / f"{method}_time"
        seconds = {spot: [lasted for lasted, _ in every] for spot, every in measured["time"].items()}
        lines = {spot: [count for _, count in every] for spot, every in measured["lines"].items()}
        return Reference(first, seconds, lines), compare(first, self.folder / f"{method}_lines")

    def _stretches(self, chain: Path) -> dict[str, list[tuple[float, int]]]:
        """Return the seconds and lines of each spot's stretches, in the first process that came there."""
        found: dict[str, list[tuple[float, int]]] = {}
        for rank in range(self.ranks):
            own: dict[str, list[tuple[float, int]]] = {}
            for spot, lasted, count in json.loads((chain / f"note_{rank}.json").read_text()):
                own.setdefault(spot, []).append((lasted, count))
            found = own | found
        return found | {RESUMING: found[STARTING]}

    def chain(
        self, method: str, number: int, moments: list[str], reference: Reference, rng: random.Random
    ) -> Chain:
        """Kill one run at ``moments``, let it end, and compare.

        Moments that the run does not come to, because it ends before, are left in ``moments``.
        """
        chain = self.folder / f"{method}_{number:03d}"
        chain.mkdir()
        result = Chain(method)
        if moments[0] == RESUMING:
            moments.insert(0, "step")  # for there to be something to resume
        points = sorted(rng.random() for moment in moments if moment not in AT_THE_BEGINNING)
        done = 0.0
        while True:
            moment, progress, plan = moments[0] if moments else "", 0.0, Plan()
            if moment and moment not in AT_THE_BEGINNING:
                progress = max(points.pop(0) - done, 0.0)
            if moment:
                plan = draw(moment, progress, reference, rng)
            ending = self.attempt(method, chain, plan, is_first=not result.kills)
            if result.kills:
                result.kills[-1].resumed = ending.code == 0 or (ending.was_killed and bool(moment))
            if not (ending.was_killed and moment):
                break
            kill = Kill(moment, described(plan), unreadable(chain, whole_only=True))
            result.kills.append(kill)
            self.say(f"{chain.name}: killed {moment:<10} {kill.where:<36} after {ending.seconds:4.1f} s")
            moments.pop(0)
            done += progress
        if ending.code != 0:
            result.failure = f"attempt {len(result.kills) + 1} ended with {ending.code}: {tail(ending.log)}"
        else:
            result.differences = compare(reference.folder, chain)
        shown = (
            "equal" if result.is_equal else result.failure or f"DIFFERS: {'; '.join(result.differences[:3])}"
        )
        self.say(f"{chain.name}: ended after {len(result.kills)} kills: {shown}")
        if result.is_equal:
            shutil.rmtree(chain)
        return result


def draw(moment: str, progress: float, reference: Reference, rng: random.Random) -> Plan:
    """Draw where in a moment to kill.

    Args:
        moment: The moment.
        progress: Which of its stretches, as a share of the whole run's, from where the attempt begins.
        reference: How many stretches there are, and how long they are.
        rng: Where the randomness comes from.
    """
    spot = rng.choice([spot for spot in SPOTS.get(moment, (moment,)) if spot in reference.lines])
    lines, seconds = reference.lines[spot], reference.seconds[spot]
    index = min(int(progress * len(lines)), len(lines) - 1)
    share = rng.random()
    return Plan(
        moment=moment,
        spot=spot,
        entry=index + 1,
        by_line=rng.random() < 0.5,
        lines=max(1, math.ceil(share * lines[index])),
        seconds=share * seconds[min(index, len(seconds) - 1)],
    )


def summed_up(differences: Sequence[str], shown: int = 5) -> list[str]:
    """Return the first of many lines, and how many more there are."""
    more = len(differences) - shown
    return [*differences[:shown], *([f"and {more} more"] if more > 0 else [])]


def described(plan: Plan) -> str:
    """Return where a plan kills, in a few words."""
    where = f"line {plan.lines}" if plan.by_line else f"{1000 * plan.seconds:.1f} ms"
    return f"{plan.spot.rpartition(':')[2].rpartition('.')[2]} {plan.entry}, {where}"


def tail(log: str) -> str:
    """Return the end of a log."""
    return "\n".join(log.strip().splitlines()[-12:])


def deal(
    times: int, methods: Sequence[str], moments: Sequence[str], rng: random.Random
) -> dict[str, list[list[str]]]:
    """Deal the kills out to runs of each method: all moments equally often, several to a run.

    In a run, what comes once at its beginning comes first, and ``resuming`` does so only if it is alone.
    """
    order = {STARTING: 0, "cache": 1}
    runs: dict[str, list[list[str]]] = {method: [] for method in methods}
    kills = [
        (methods[(index // len(moments)) % len(methods)], moments[index % len(moments)])
        for index in range(times)
    ]
    for method in methods:
        own = [moment for whose, moment in kills if whose == method]
        rng.shuffle(own)
        count = math.ceil(len(own) / KILLS_OF_A_RUN)
        for number in range(count):
            run = own[number::count]
            early = sorted((moment for moment in run if moment in order), key=order.__getitem__)
            late = [moment for moment in run if moment not in order]
            if not early:
                late.sort(key=RESUMING.__eq__)
            runs[method].append([*early, *late])
    return runs


def interrupt(
    harness: Harness,
    times: int,
    seed: int,
    methods: Sequence[str] = METHODS,
    moments: Sequence[str] = MOMENTS,
) -> tuple[list[Chain], list[str]]:
    """Kill runs ``times`` times in all.

    Returns:
        The runs, and what already differs between two undisturbed ones.
    """
    make_pictures(harness.folder / "data", seed)
    if not harness.fresh:
        import_all()
    rng = random.Random(seed)
    runs = deal(times, methods, moments, rng)
    chains: list[Chain] = []
    control: list[str] = []
    for method in methods:
        if not runs[method]:
            continue
        began = time.perf_counter()
        reference, differs = harness.reference(method)
        control += [f"{method}: {difference}" for difference in differs]
        harness.say(
            f"{method}: two undisturbed runs, {'equal' if not differs else '; '.join(differs[:5])}, "
            f"{time.perf_counter() - began:.0f} s"
        )
        waiting, number = runs[method], 0
        while waiting:
            todo = waiting.pop(0)
            asked = len(todo)
            chains.append(harness.chain(method, number, todo, reference, rng))
            number += 1
            if todo and (len(todo) < asked or not chains[-1].failure):
                waiting.append(todo)  # the run ended before these moments came
            if number > 4 * times + 4:
                raise RuntimeError(f"the runs end before their moments come: {todo}")
    return chains, control


def table(chains: Sequence[Chain], moments: Sequence[str]) -> str:
    """Return moment x kills, resumed, equal as a Markdown table."""
    lines = ["| moment | kills | files whole | resumed | bit-equal |", "| --- | --- | --- | --- | --- |"]
    every = [(chain, kill) for chain in chains for kill in chain.kills]
    for name in (*moments, "all"):
        rows = [(chain, kill) for chain, kill in every if name in (kill.moment, "all")]
        counts = [
            len(rows),
            sum(not kill.unreadable for _, kill in rows),
            sum(kill.resumed for _, kill in rows),
            sum(chain.is_equal for chain, _ in rows),
        ]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return where and with what this was measured."""
    from importlib.metadata import version

    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "lightning")},
    }


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interrupt",
        description=__doc__.partition("\n\n")[0] if __doc__ else None,
        epilog="Exit status: 0 if every run ended bit-equal and every file is whole, else 1.",
    )
    parser.add_argument("--times", type=int, default=50, help="kills in all (50)")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2), help="processes of a run (1)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments (0)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="what to train (all)")
    parser.add_argument(
        "--moments", nargs="+", choices=MOMENTS, default=MOMENTS, help="where to kill (anywhere)"
    )
    parser.add_argument("--fresh", action="store_true", help="start a new interpreter for each attempt")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here, and leave what differs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--attempt", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.times < 1:
        parser.error(f"--times {arguments.times}: give at least 1")
    if arguments.keep is not None and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep}: is there already; give a new folder")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    # Before NumPy comes: a process with threads of its own cannot be forked safely.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    arguments = parse_arguments(words)
    if arguments.attempt:
        return Order.from_json(arguments.attempt).obey()
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:6.1f} s] {line}", flush=True)

    with contextlib.ExitStack() as stack:
        if arguments.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="i2i-interrupt-")))
        else:
            folder = arguments.keep.resolve()
            folder.mkdir(parents=True)
        harness = Harness(folder, arguments.ranks, arguments.fresh, say)
        chains, control = interrupt(
            harness, arguments.times, arguments.seed, arguments.methods, arguments.moments
        )
    seconds = time.perf_counter() - began
    print(f"\n{table(chains, arguments.moments)}\n")
    wrong = [f"undisturbed: {difference}" for difference in control]
    for chain in chains:
        about = f"{chain.method}, killed {', '.join(f'{k.moment} ({k.where})' for k in chain.kills)}"
        wrong += [f"{about}: {words}" for words in [*summed_up(chain.differences), chain.failure] if words]
        wrong += [f"{about}: {name}" for kill in chain.kills for name in kill.unreadable]
    for line in wrong:
        print(line)
    killed = sum(len(chain.kills) for chain in chains)
    each = "2 processes each" if arguments.ranks > 1 else "1 process each"
    verdict = f"{len(wrong)} things are wrong" if wrong else "everything is bit-equal and whole"
    print(f"{killed} kills of {len(chains)} runs, {each}, in {seconds:.0f} s: {verdict}")
    if arguments.output is not None:
        result = {
            "machine": machine(), "times": killed, "ranks": arguments.ranks, "seed": arguments.seed,
            "fresh": arguments.fresh, "seconds": round(seconds, 1), "wrong": wrong,
            "runs": [asdict(chain) | {"equal": chain.is_equal} for chain in chains],
        }  # fmt: skip
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
