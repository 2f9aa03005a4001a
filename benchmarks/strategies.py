"""Every strategy with every number format and every method, for a few batches: what runs, as a table.

``python -m benchmarks.strategies --run ddp --results cells.jsonl`` runs the cells of one strategy in one
launch and writes a line for each. ``python -m benchmarks.strategies --write`` puts the table into
docs/strategies.md. The tests do the first and compare the second.

Each cell composes the command's own config, shrunk to small networks and pictures of 32 px, and builds what
it names as ``i2i-train`` does, or ``i2i-invert``. It passes if every loss was finite, every player's weights
moved, and all processes ended with the same weights. In an inversion each process has its own images: latents
and noise maps must have moved, and the generator must not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from i2i_lightning import config
from i2i_lightning.cli.app import quiet_others
from i2i_lightning.cli.folders import conf_dir, group_options
from i2i_lightning.commands.fitting import build_trainer, entries
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.strategies.cluster import cluster_environment

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "strategies.md"
BEGIN, END = "<!-- table: python -m benchmarks.strategies --write -->", "<!-- end of table -->"

HARDWARE = {"gpu": "CUDA", "mps": "MPS"}
"""Strategies that need more than a CPU, and what."""
PROCESSES = {
    "ddp": ["trainer.accelerator=cpu", "trainer.devices=2"],
    "ddp_spawn": ["trainer.accelerator=cpu", "trainer.devices=2"],
    "multi_node": ["trainer.accelerator=cpu", "trainer.devices=1"],
}
"""How the strategies of several processes run on a machine without GPUs."""
UNSUPPORTED = {("mps", "fp16"), ("mps", "fp64")}
"""Strategies and number formats that are refused with a message."""
INVERSION = "w_plus_inversion"
UNSUITABLE = {("fp16", INVERSION)}
"""Number formats and methods that are."""

FEW: dict[str, dict[str, Any]] = {
    "data": {
        "crop_px": 32,
        "batch_size": 2,
        "val_batch_size": 2,
        "num_train": 8,
        "num_train_a": 8,
        "num_train_b": 6,
        "num_val": 3,
        "num_test": 2,
    },
    "generator": {
        "base_channels": 4,
        "num_blocks": 1,
        "channel_base": 128,
        "channel_max": 8,
        "z_dim": 8,
        "w_dim": 8,
        "mapping_layers": 2,
    },
    "discriminator": {"base_channels": 4, "num_layers": 1, "channel_base": 128, "channel_max": 8},
    "callbacks": {"previews.num_samples": 2, "progress": None, "toyfaces": None, "gallery": None},
}
"""Sizes and entries of a group that are made small wherever an option has them."""
SMALL = [
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]
SMALL_INVERSION = [
    "data.num_faces=4",
    "loss.perceptual.name=substitute",
    "method.start.kind=mean",  # what moves is told from where it began
    "method.stages.w_plus.steps=2",
    "method.stages.noise.steps=2",
]


@dataclass(frozen=True)
class Cell:
    """One combination of config groups."""

    strategy: str
    precision: str
    method: str

    @property
    def root(self) -> str:
        """The root config of the command that runs the method."""
        return "invert" if self.method == INVERSION else "train"

    @property
    def is_refused(self) -> bool:
        """Whether the command stops with a message."""
        return (self.strategy, self.precision) in UNSUPPORTED or (self.precision, self.method) in UNSUITABLE

    @property
    def text(self) -> str:
        """What the table says of it."""
        if self.is_refused:
            return "refused"
        needs = HARDWARE.get(self.strategy)
        return "run by a test" if needs is None else f"not run: needs {needs}"


def cells(strategies: Sequence[str] | None = None) -> list[Cell]:
    """Return every combination of the files in conf/trainer, conf/precision and conf/method."""
    groups = [group_options(conf_dir(), group) for group in ("trainer", "precision", "method")]
    chosen = groups[0] if strategies is None else strategies
    return [Cell(*names) for names in ((s, p, m) for s in chosen for p in groups[1] for m in groups[2])]


def table() -> str:
    """Return the table as Markdown: a row for each strategy and precision, a column for each method."""
    methods = group_options(conf_dir(), "method")
    lines = [f"| trainer | precision | {' | '.join(methods)} |", "| --- " * (2 + len(methods)) + "|"]
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells():
        rows.setdefault((cell.strategy, cell.precision), []).append(cell.text)
    return "\n".join([*lines, *(f"| {s} | {p} | {' | '.join(texts)} |" for (s, p), texts in rows.items())])


def document(text: str) -> str:
    """Return the text of docs/strategies.md with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


# ---------------------------------------------------------------------------------------------------- running


class Probe(Callback):
    """Watch a run from every process, and write what came of it from the first.

    Args:
        cell: What runs.
        results: File to add a line of JSON to.
    """

    def __init__(self, cell: Cell, results: Path) -> None:
        self.cell, self.results = cell, results
        self._before: dict[str, str] = {}
        self._batches = 0
        self._is_finite = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the weights begin."""
        self._before = weight_hashes(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the losses."""
        terms: dict[str, torch.Tensor] = pl_module.step_terms  # type: ignore[assignment]
        self._batches += 1
        self._is_finite &= bool(terms) and all(math.isfinite(float(value)) for value in terms.values())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights with their beginning, and with those of the other processes."""
        after = weight_hashes(pl_module)
        moved = [name for name, digest in after.items() if digest != self._before[name]]
        inverts = self.cell.method == INVERSION
        mine = {
            "batches": self._batches,
            "finite": self._is_finite,
            "unmoved": unmoved_latents(pl_module) if inverts else sorted(after.keys() - set(moved)),
            "touched": moved if inverts else [],
            "weights": after,
        }
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        if not trainer.is_global_zero:
            return
        line = asdict(self.cell) | {
            "processes": len(everyone),
            "batches": sum(one["batches"] for one in everyone),
            "finite": all(one["finite"] for one in everyone),
            "unmoved": sorted({name for one in everyone for name in one["unmoved"]}),
            "touched": sorted({name for one in everyone for name in one["touched"]}),
            "equal": all(one["weights"] == mine["weights"] for one in everyone),
            "precision_of_lightning": trainer.precision,
        }
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def weight_hashes(pl_module: LightningModule) -> dict[str, str]:
    """Return a digest of each player's parameters, to the bit; of an inversion that of its generator."""
    players: dict[str, list[torch.nn.Module]] = pl_module.players  # type: ignore[assignment]
    if hasattr(pl_module, "search"):
        players = {"generator": [pl_module.generator]}  # type: ignore[list-item]
    digests = {}
    for name, networks in players.items():
        digest = hashlib.sha256()
        for parameter in (p for network in networks for p in network.parameters()):
            digest.update(parameter.detach().cpu().numpy().tobytes())
        digests[name] = digest.hexdigest()
    return digests


def unmoved_latents(pl_module: LightningModule) -> list[str]:
    """Return what an inversion has left where it began, at the mean latent and the generator's noise maps."""
    generator: Any = pl_module.generator
    found = pl_module.embedding()  # type: ignore[operator]
    starts = {"w_plus": generator.w_avg.expand_as(found.w_plus[0])}
    starts |= {f"noise {index}": map_[0] for index, map_ in enumerate(generator.noise_maps())}
    ends = {"w_plus": found.w_plus, **{f"noise {index}": map_ for index, map_ in enumerate(found.noise)}}
    return [name for name, start in starts.items() if any(torch.equal(end, start) for end in ends[name])]


@contextmanager
def configs() -> Iterator[None]:
    """Let configs be composed within this context."""
    config.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def run(cell: Cell, folder: Path, results: Path, extra: Sequence[str] = ()) -> None:
    """Train a cell for an epoch of a few batches; call it within :func:`configs`.

    Args:
        cell: What to run.
        folder: Run folder.
        results: File that :class:`Probe` adds a line to.
        extra: Further overrides.
    """
    choice = [f"trainer={cell.strategy}", f"precision={cell.precision}", f"method={cell.method}"]
    small = [*SMALL, *(SMALL_INVERSION if cell.method == INVERSION else [])]
    whole = compose(cell.root, overrides=choice)
    sizes = [
        f"{group}.{key}={'null' if few is None else few}"
        for group, keys in FEW.items()
        for key, few in keys.items()
        if OmegaConf.select(whole, f"{group}.{key}") is not None
    ]
    # From the usual 65536, fp16 leaves out more steps than these until it has found its scale.
    scale = ["precision.init_scale=64"] if cell.precision == "fp16" else []
    own = [f"logger.csv.save_dir='{folder}'", *PROCESSES.get(cell.strategy, []), *scale, *extra]
    composed = compose(cell.root, overrides=[*choice, *small, *sizes, *own])
    seed_everything(composed.seed, workers=True, verbose=False)
    method, data = inversion_parts(composed) if cell.method == INVERSION else training_parts(composed)
    method.config = OmegaConf.to_container(composed.method, resolve=True)
    callbacks = [*entries(composed.callbacks), Probe(cell, results)]
    loggers = entries(composed.logger)
    trainer = build_trainer(composed, cluster_environment(), callbacks, loggers, folder)
    trainer.fit(method, datamodule=data)


def training_parts(composed: DictConfig) -> tuple[Any, Any]:
    """Return the method and the data as ``i2i-train`` builds them."""
    return instantiate(composed.method, _convert_="all"), instantiate(composed.data, _convert_="all")


def inversion_parts(composed: DictConfig) -> tuple[Any, Any]:
    """Return the method and the data as ``i2i-invert`` builds them, but for a small untrained generator."""
    generator = StyleGAN2Generator(32, 3, 8, 8, mapping_layers=1, channel_base=128, channel_max=8)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.1)  # else noise maps would have no effect
    composed.method.generator = None
    method = instantiate(composed.method, _partial_=True, _convert_="all")(generator=generator)
    return method, instantiate(composed.data, size_px=32, channels=3, _convert_="all")


def main(words: Sequence[str] | None = None) -> int:
    """Run or write, as the words say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/strategies.md")
    parser.add_argument("--run", metavar="STRATEGY", help="run every cell of a strategy")
    parser.add_argument("--results", type=Path, default=Path("cells.jsonl"), help="file for a line per cell")
    arguments = parser.parse_args(words)
    if arguments.write:
        DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    if arguments.run:
        quiet_others()
        with tempfile.TemporaryDirectory() as folder, configs():
            for number, cell in enumerate(cells([arguments.run])):
                if cell.is_refused:
                    continue
                run(cell, Path(folder, str(number)), arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
