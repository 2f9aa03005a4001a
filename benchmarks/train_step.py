"""Time one step of a method: ours, as ``i2i-train`` runs it, against the authors' loop in plain PyTorch.

Usage, the first one at 256 px with 1 and 4 images per step, on the GPU if there is one::

    python -m benchmarks.train_step
    python -m benchmarks.train_step --size-px 128 --batch 1 --repeats 10 --json step.json
    python -m benchmarks.train_step --method cyclegan --size-px 128 --override generator=resnet_6

Three contenders, each in a process of its own, take turns at single steps (at blocks of steps on a GPU), so
that whatever else the machine does falls on all of them alike:

* ``plain``: ``benchmarks/reference_pix2pix.py`` or ``reference_cyclegan.py``, the published networks and
  order of updates, default Adam;
* ``bare``: the same written-out step on our networks and our configured optimiser, without Lightning;
* ``ours``: ``Pix2Pix`` or ``CycleGAN`` in a Lightning ``Trainer``, both composed from our config with its
  logger and its callbacks, from fetching a batch to the end of the last callback. Those that act at an
  epoch's end alone are left out.

First they train from the same weights on the same images without dropout, and their losses are compared
step by step, in float64 and in float32. (Two correct float32 runs part by a factor of about ten at each
step: Adam's first updates depend on little but the gradients' signs.) Then dropout is switched on, as
published, and they are timed. ``ours - bare`` is what Lightning and logging add. The floor is the work of a
step, in FLOP and in bytes of weights and optimiser state, over what this machine's matrix product and
vector addition reach in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference_cyclegan, reference_pix2pix
from benchmarks.reference_cyclegan import PlainCycleGAN, PlainPool
from benchmarks.reference_pix2pix import PlainPix2Pix, copy_weights

Contender = Literal["plain", "bare", "ours"]
CONTENDERS: tuple[Contender, ...] = ("plain", "bare", "ours")
METHODS = ("pix2pix", "cyclegan")
TERMS = {
    "pix2pix": ("discriminator/gan", "generator/gan", "generator/l1"),
    "cyclegan": (
        *(
            f"generators/{name}"
            for name in ("gan_ab", "gan_ba", "cycle_a", "cycle_b", "identity_a", "identity_b")
        ),
        *(f"discriminators/{name}" for name in ("gan_a", "gan_b")),
    ),
}
PLAYERS = {
    "pix2pix": (("generator",), ("discriminator",)),
    "cyclegan": (("generator_ab", "generator_ba"), ("discriminator_a", "discriminator_b")),
}
"""The networks of generators and discriminators, by method."""
CHECKED_IN = ("fp64", "fp32")
LEFT_OUT = ("checkpoints", "stopping", "previews", "gallery")
"""Callbacks that act at an epoch's end or a signal, neither of which comes here."""
BYTES_PER_PARAMETER = 40
"""Least traffic of a trained float32 weight: read forward and backward, gradient written; Adam reads weight,
gradient and two moments and writes weight and moments: 4 * (2 + 1 + 4 + 3)."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Args:
        method: ``pix2pix`` or ``cyclegan``.
        size_px: Side of the images.
        batch: Images per step.
        device: ``cpu`` or ``cuda``.
        precision: ``fp64``; ``fp32``; ``tf32``: tensor cores for float32 products, for all contenders;
            ``bf16``: autocast for bare and ours, while the plain loop, which knows none, runs in tf32.
        channels_last: Whether our networks keep their weights in NHWC.
        compile: Whether our networks are compiled.
        dropout: Whether dropout is on.
        base_channels: Width of both networks.
        threads: CPU threads; None leaves PyTorch's choice.
        overrides: Further overrides of our config, as on the command line of ``i2i-train``.
        check_steps: Steps whose losses are compared.
        warmup: Steps that no one times.
        block: Steps in a turn.
        repeats: Turns.
    """

    method: str = "pix2pix"
    size_px: int = 256
    batch: int = 1
    device: str = "cpu"
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    dropout: bool = True
    base_channels: int = 64
    threads: int | None = None
    overrides: tuple[str, ...] = ()
    check_steps: int = 5
    warmup: int = 3
    block: int = 1
    repeats: int = 15

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and images."""
        return torch.float64 if self.precision == "fp64" else torch.float32


class Turns:
    """One contender's end of the pipe: it trains when told to and reports how long that took."""

    def __init__(self, connection: Connection, device: str, warmup: int) -> None:
        self.connection = connection
        self.device = device
        self.left = warmup
        self.began = self.clocks()

    def clocks(self) -> tuple[float, float]:
        """Return the wall's and the processor's seconds, once the device has finished."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def done(self) -> bool:
        """Count a step; at the end of a turn report its seconds and wait. False: stop training."""
        self.left -= 1
        if self.left > 0:
            return True
        now = self.clocks()
        self.connection.send((now[0] - self.began[0], now[1] - self.began[1]))
        self.left = self.connection.recv()
        self.began = self.clocks()
        return self.left > 0


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """A few random batches, again and again."""

    def __init__(self, setting: Setting) -> None:
        random = torch.Generator().manual_seed(1)
        shape = (setting.batch, 3, setting.size_px, setting.size_px)
        self.batches = [
            {
                "real_a": (torch.rand(shape, generator=random) * 2 - 1).to(setting.device, setting.dtype),
                "real_b": (torch.rand(shape, generator=random) * 2 - 1).to(setting.device, setting.dtype),
                "name": [str(i) for i in range(setting.batch)],
            }
            for _ in range(4)
        ]

    def __len__(self) -> int:
        """An epoch that no benchmark sees the end of."""
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a whole batch, already on the device."""
        return self.batches[index % len(self.batches)]


def compose(setting: Setting, folder: str) -> Any:
    """Compose the config of the method as ``i2i-train`` does, for images of our making."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from i2i_lightning import config
    from i2i_lightning.cli.folders import conf_dir

    config.register()
    of_method = {
        "pix2pix": ["data=paired", f"generator.dropout={'reference' if setting.dropout else 'none'}"],
        "cyclegan": ["data=unpaired"],
    }
    overrides = [
        f"method={setting.method}",
        *of_method[setting.method],
        f"data.root={folder}",
        f"data.crop_px={setting.size_px}",
        f"data.batch_size={setting.batch}",
        f"generator.base_channels={setting.base_channels}",
        f"discriminator.base_channels={setting.base_channels}",
        f"precision={setting.precision}",
        "trainer.max_epochs=2",
        f"logger.csv.save_dir={folder}",
        f"trainer.accelerator={'gpu' if setting.device == 'cuda' else 'cpu'}",
        *setting.overrides,
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose("train", overrides=overrides)


def build_ours(config: Any, setting: Setting) -> Any:
    """Build our method from the config, with the weights that every contender starts from."""
    from hydra.utils import instantiate

    torch.manual_seed(0)
    method = instantiate(config.method, _convert_="all").to(setting.device, setting.dtype)
    for network in networks(method, setting):
        if setting.channels_last:
            network.to(memory_format=torch.channels_last)
        if setting.compile:
            network.compile()
    return method


def networks(method: Any, setting: Setting) -> list[torch.nn.Module]:
    """Return the networks of the method, or of its plain loop."""
    return [getattr(method, name) for player in PLAYERS[setting.method] for name in player]


Loop = PlainPix2Pix | PlainCycleGAN


def build_plain(config: Any, setting: Setting) -> Loop:
    """Build the plain loop, its networks at our initial weights."""
    method = build_ours(config, replace(setting, channels_last=False, compile=False))
    base = setting.base_channels
    if setting.method == "pix2pix":
        twins: list[torch.nn.Module] = [
            reference_pix2pix.unet(3, 3, method.generator.num_downs, base, setting.dropout),
            reference_pix2pix.patchgan(6, base),
        ]
    else:
        blocks = len(method.generator_ab.blocks)
        twins = [reference_cyclegan.resnet(3, 3, base, blocks) for _ in range(2)]
        twins += [reference_cyclegan.patchgan(3, base, method.discriminator_a.num_layers) for _ in range(2)]
    for network, twin in zip(networks(method, setting), twins, strict=True):
        copy_weights(network, twin)
        twin.to(setting.device, setting.dtype)
    return loop_around(twins, method, setting)


def build_bare(config: Any, setting: Setting) -> Loop:
    """Build the same loop around our networks and our configured optimiser."""
    from hydra.utils import instantiate

    method = build_ours(config, setting)
    optimizer = instantiate(config.optimizer, _convert_="all")
    generators, discriminators = (
        optimizer([parameter for name in player for parameter in getattr(method, name).parameters()])
        for player in PLAYERS[setting.method]
    )
    return loop_around(networks(method, setting), method, setting, (generators, discriminators), True)


def loop_around(
    nets: Sequence[torch.nn.Module],
    method: Any,
    setting: Setting,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None,
    drops_gradients_early: bool = False,
) -> Loop:
    """Return the plain loop of the method on these networks; image pools draw as ours do."""
    if setting.method == "pix2pix":
        return PlainPix2Pix(*nets, optimizers=optimizers, drops_gradients_early=drops_gradients_early)
    return PlainCycleGAN(
        *nets,
        *(PlainPool(pool.size, pool.draw) for pool in method.pools.values()),
        lambda_identity=method.loss.lambda_identity,
        optimizers=optimizers,
        drops_gradients_early=drops_gradients_early,
    )


def train_plain(
    loop: Loop, setting: Setting, autocast: bool, after: Callable[[dict[str, Tensor]], bool]
) -> None:
    """Step through the batches until ``after``, which sees the losses, says False."""
    batches, index, going = Batches(setting), 0, True
    while going:
        with torch.autocast(setting.device, torch.bfloat16, enabled=autocast):
            losses = loop.step(batches[index])
        index += 1
        going = after(losses)


def train_ours(
    config: Any, setting: Setting, folder: str, after: Callable[[dict[str, Tensor]], bool]
) -> None:
    """Fit our method in a Trainer until ``after``, which sees the losses, says False."""
    from hydra.utils import instantiate
    from lightning import Callback

    class After(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if not after(pl_module.step_terms):
                trainer.should_stop = True

    def entries(group: Any) -> list[Any]:
        nodes = {
            name: node for name, node in (group or {}).items() if name not in LEFT_OUT and node is not None
        }
        return [instantiate(node, _convert_="all") for node in nodes.values()]

    method = build_ours(config, setting)
    trainer = instantiate(
        config.trainer,
        plugins=[instantiate(config.precision)],
        callbacks=[*entries(config.callbacks), After()],
        logger=entries(config.logger),
        default_root_dir=folder,
        enable_checkpointing=False,
        _convert_="all",
    )
    trainer.fit(method, torch.utils.data.DataLoader(Batches(setting), batch_size=None))


def train(
    contender: Contender, setting: Setting, folder: str, after: Callable[[dict[str, Tensor]], bool]
) -> None:
    """Train ``contender`` until ``after`` says False."""
    config = compose(setting, folder)
    if contender == "ours":
        train_ours(config, setting, folder, after)
        return
    loop = build_plain(config, setting) if contender == "plain" else build_bare(config, setting)
    train_plain(loop, setting, setting.precision == "bf16" and contender == "bare", after)


def work(contender: Contender, setting: Setting, connection: Connection) -> None:
    """Be a contender: send the losses of the first steps, then take turns until told to stop."""
    import lightning  # noqa: F401 - it sets the level of its logger when it is imported

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    tensor_cores = setting.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = tensor_cores
    torch.backends.cudnn.allow_tf32 = tensor_cores
    torch.backends.cudnn.benchmark = True

    with tempfile.TemporaryDirectory() as folder:
        for precision in CHECKED_IN if setting.check_steps else ():
            losses: list[list[float]] = []

            def keep(terms: Mapping[str, Tensor], losses: list[list[float]] = losses) -> bool:
                losses.append([terms[name].item() for name in TERMS[setting.method] if name in terms])
                return len(losses) < setting.check_steps

            train(contender, replace(setting, dropout=False, precision=precision), folder, keep)
            connection.send(losses)
        turns = Turns(connection, setting.device, setting.warmup)
        train(contender, setting, folder, lambda terms: turns.done())


def floor(setting: Setting) -> dict[str, float]:
    """Return the work of a step and how fast this machine could do it.

    ``flop`` counts multiplications and additions of convolutions in a whole step; ``bytes`` is the least
    traffic of weights, gradients and Adam's moments; the rates are those of a matrix product and of an
    addition of long vectors.
    """
    on_cpu = replace(setting, device="cpu", channels_last=False, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        loop = build_plain(compose(on_cpu, folder), on_cpu)
    nets = networks(loop, setting)
    parameters = sum(parameter.numel() for net in nets for parameter in net.parameters())
    # The meta device goes through the same operations without doing them.
    for net in nets:
        net.to("meta")
    with FlopCounterMode(display=False) as counter:
        loop.step(Batches(replace(setting, device="meta"))[0])

    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    half = setting.precision == "bf16"
    side = 8192 if setting.device == "cuda" else 2048
    matrix = torch.randn(side, side, device=setting.device, dtype=torch.bfloat16 if half else torch.float32)
    product = torch.empty_like(matrix)
    vector = torch.ones(2**26, device=setting.device)
    other, total = torch.ones_like(vector), torch.empty_like(vector)
    flop_per_s = 2 * side**3 / fastest(lambda: torch.mm(matrix, matrix, out=product), setting.device)
    bytes_per_s = (
        3 * 4 * vector.numel() / fastest(lambda: torch.add(vector, other, out=total), setting.device)
    )
    flop, traffic = float(counter.get_total_flops()), float(BYTES_PER_PARAMETER * parameters)
    return {
        "parameters": float(parameters),
        "flop": flop,
        "bytes": traffic,
        "flop_per_s": flop_per_s,
        "bytes_per_s": bytes_per_s,
        "compute_ms": 1e3 * flop / flop_per_s,
        "traffic_ms": 1e3 * traffic / bytes_per_s,
    }


def fastest(run: Callable[[], object], device: str, tries: int = 7) -> float:
    """Return the least seconds that ``run`` took."""
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def largest_difference(terms: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest relative difference between the loss terms of a step and those of another."""
    return max(abs(x - y) / abs(y) for x, y in zip(terms, others, strict=True))


def measure(setting: Setting) -> dict[str, Any]:
    """Run the three contenders against each other and return what the table shows."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[Contender, Connection] = {}
    processes = []
    losses: dict[str, dict[Contender, list[list[float]]]] = {}
    for contender in CONTENDERS:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(contender, setting, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes[contender] = ours
        processes.append(process)
        # One at a time: losses, then the warm-up, before the next contender starts.
        for precision in CHECKED_IN if setting.check_steps else ():
            losses.setdefault(precision, {})[contender] = answer(ours, contender)
        answer(ours, contender)

    seconds: dict[Contender, list[float]] = {contender: [] for contender in CONTENDERS}
    processor: dict[Contender, list[float]] = {contender: [] for contender in CONTENDERS}
    for turn in range(setting.repeats):
        shift = turn % len(CONTENDERS)
        for contender in CONTENDERS[shift:] + CONTENDERS[:shift]:
            pipes[contender].send(setting.block)
            wall, cpu = answer(pipes[contender], contender)
            seconds[contender].append(wall / setting.block)
            processor[contender].append(cpu / setting.block)
    for pipe in pipes.values():
        pipe.send(0)
    for process in processes:
        process.join()

    plain = seconds["plain"]
    return {
        "setting": asdict(setting),
        "milliseconds": {
            name: {
                "median": 1e3 * statistics.median(times),
                "least": 1e3 * min(times),
                "quartiles": [1e3 * q for q in statistics.quantiles(times, n=4)[::2]]
                if len(times) > 1
                else [],
                "all": [1e3 * t for t in times],
                "processor": 1e3 * statistics.median(processor[name]),
            }
            for name, times in seconds.items()
        },
        "ratio_to_plain": {
            name: statistics.median(times) / statistics.median(plain) for name, times in seconds.items()
        },
        "loss_difference": {
            precision: [
                largest_difference(ours, plain) for ours, plain in zip(of["ours"], of["plain"], strict=True)
            ]
            for precision, of in losses.items()
        },
        "losses": losses,
        "floor": floor(setting),
    }


def answer(pipe: Connection, contender: str) -> Any:
    """Receive from a contender, or say which one died."""
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"the contender '{contender}' ended early; its own message is above") from None


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import lightning

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": name,
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def report(result: Mapping[str, Any]) -> str:
    """Return a row's measurements as text."""
    setting, times, base = result["setting"], result["milliseconds"], result["floor"]
    options = [name for name in ("channels_last", "compile") if setting[name]]
    title = [
        setting["method"],
        f"{setting['size_px']} px",
        f"batch {setting['batch']}",
        setting["device"],
        setting["precision"],
    ]
    title += [*options, *setting["overrides"], f"{setting['repeats']} turns of {setting['block']}"]
    lines = [
        ", ".join(title),
        f"  {'':8}{'median':>10}{'quartiles':>20}{'least':>10}{'processor':>11}"
        f"{'images/s':>10}{'/ plain':>9}",
    ]
    for name in CONTENDERS:
        row = times[name]
        spread = " - ".join(f"{q:.1f}" for q in row["quartiles"])
        lines.append(
            f"  {name:8}{row['median']:>7.1f} ms{spread:>20}{row['least']:>10.1f}{row['processor']:>11.1f}"
            f"{1e3 * setting['batch'] / row['median']:>10.2f}{result['ratio_to_plain'][name]:>9.3f}"
        )
    step = times["ours"]["median"]
    added = step - times["bare"]["median"]
    lines += [
        f"  Lightning and logging add {added:.1f} ms, {100 * added / step:.1f} % of our step",
        f"  floor: {base['flop'] / 1e9:.1f} GFLOP at {base['flop_per_s'] / 1e9:.0f} GFLOP/s is "
        f"{base['compute_ms']:.1f} ms; weights and Adam {base['bytes'] / 1e9:.2f} GB at "
        f"{base['bytes_per_s'] / 1e9:.1f} GB/s is {base['traffic_ms']:.1f} ms",
        f"  our step takes {step / (base['compute_ms'] + base['traffic_ms']):.2f} times the sum of the two",
    ]
    for precision, differences in result["loss_difference"].items():
        steps = ", ".join(f"{difference:.0e}" for difference in differences)
        lines.append(
            f"  losses of ours and plain from the same start, {precision}, differ step by step by {steps}"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> tuple[list[Setting], Path | None]:
    """Turn the command line into rows."""
    cuda = torch.cuda.is_available()
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=summary)
    parser.add_argument("--method", choices=METHODS, default="pix2pix")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], nargs="+")
    parser.add_argument("--channels-last", action="store_true", help="keep our networks' weights in NHWC")
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--base-channels", type=int, default=64)
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice)")
    parser.add_argument("--override", nargs="+", default=[], help="overrides of our config, as for i2i-train")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each contender")
    parser.add_argument("--check-steps", type=int, default=5, help="steps whose losses are compared")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args(argv)
    on_gpu = args.device == "cuda"
    if on_gpu and not cuda:
        parser.error("--device cuda: PyTorch sees no GPU here")
    settings = [
        Setting(
            method=args.method,
            size_px=args.size_px,
            batch=batch,
            device=args.device,
            precision=precision,
            channels_last=args.channels_last,
            compile=args.compile,
            base_channels=args.base_channels,
            threads=args.threads,
            overrides=tuple(args.override),
            check_steps=args.check_steps,
            warmup=20 if on_gpu else 2,
            block=20 if on_gpu else 1,
            repeats=args.repeats,
        )
        for precision in args.precision or (["fp32", "tf32", "bf16"] if on_gpu else ["fp32"])
        for batch in args.batch
    ]
    return settings, args.json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    settings, path = parse(argv)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None), flush=True)
    results = []
    for setting in settings:
        results.append(measure(setting))
        print(report(results[-1]), flush=True)
    if path is not None:
        path.write_text(json.dumps({"machine": about, "rows": results}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
