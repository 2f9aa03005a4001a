"""Versions, devices, and the number formats that each device computes in."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2i_lightning.diagnosis.findings import NO_BREAK, Finding, brief, listed, output_of

if TYPE_CHECKING:
    import torch

PACKAGE = "i2i_lightning"
BUSY_LOAD = 1.0
"""With more processes at work than this per core, timings are not those of the machine."""
FREE_GPU_SHARE = 0.5
"""With less of a GPU's memory free than this, others are at work on it."""

# -------------------- versions


def versions(commit: str | None) -> Iterator[Finding]:
    """Compare Python and the packages with what this package's own metadata asks for.

    Args:
        commit: The commit of the checkout, and whether there are changes to it; None outside of one.
    """
    yield Finding(PACKAGE, _package_text(commit), values={"commit": commit})
    try:
        about = metadata(PACKAGE)
    except PackageNotFoundError:
        yield Finding("python", platform.python_version(), values={"version": platform.python_version()})
        yield Finding("packages", "not installed as a package: nothing says which versions it needs", "note",
                      "in the checkout: pip install -e .")  # fmt: skip
        return
    yield from _python(about["Requires-Python"] or "")
    extras = [extra for extra in about.get_all("Provides-Extra") or [] if extra != "dev"]
    yield from _packages(about.get_all("Requires-Dist") or [], extras)


def _package_text(commit: str | None) -> str:
    from i2i_lightning import __version__

    return f"{__version__}, {f'commit {commit}' if commit else 'commit unknown'}"


def _python(needs: str) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    have = platform.python_version()
    fits = SpecifierSet(needs).contains(have, prereleases=True)
    yield Finding(
        "python",
        have if fits else f"{have}; this package needs {needs}",
        "ok" if fits else "problem",
        "" if fits else "make a new environment with a Python of that range",
        {"version": have, "needs": needs},
    )


def _packages(requirements: list[str], extras: list[str]) -> Iterator[Finding]:
    """Yield one finding for all that fits, and one for each package that does not."""
    from packaging.requirements import Requirement

    fitting: dict[str, str] = {}
    needs: dict[str, str] = {}
    wrong: list[Finding] = []
    missing_extras: dict[str, list[str]] = {}
    for requirement in map(Requirement, requirements):
        extra = None
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            extra = next((e for e in extras if requirement.marker.evaluate({"extra": e})), None)
            if extra is None:
                continue  # for developers, or for another platform
        name, wanted = requirement.name, str(requirement.specifier)
        if name in needs:
            continue
        needs[name] = wanted
        try:
            have = version(name)
        except PackageNotFoundError:
            if extra is None:
                advice = f"pip install '{name}{wanted}'"
                wrong.append(Finding(name, f"not installed; needs {wanted}", "problem", advice))
            else:
                missing_extras.setdefault(extra, []).append(name)
            continue
        if requirement.specifier.contains(have, prereleases=True):
            fitting[name] = have
        else:
            wrong.append(
                Finding(
                    name,
                    f"{have}; needs {wanted}",
                    "note" if extra else "problem",
                    f"pip install '{name}{wanted}'",
                    {"version": have, "needs": wanted},
                )
            )
    text = listed([f"{name}{NO_BREAK}{have}" for name, have in fitting.items()])
    yield Finding("packages", text, values={"versions": fitting, "needs": needs})
    yield from wrong
    for extra, names in missing_extras.items():
        text = f"{listed(names)} not installed (only needed for {extra})"
        yield Finding(
            f"[{extra}]", text, advice=f"pip install '{PACKAGE}[{extra}]'", values={"missing": names}
        )


# -------------------- processor and memory


def processor() -> Iterator[Finding]:
    """Say how many cores this process may use, and whether torch uses them."""
    import torch

    from i2i_lightning.data.cache import available_cores

    there, allowed, quota = os.cpu_count() or 1, available_cores(), cpu_quota()
    usable = allowed if quota is None else min(allowed, max(1, math.floor(quota)))
    threads = torch.get_num_threads()
    limits = [f"{allowed} by affinity"] if allowed < there else []
    limits += [f"{quota:g} by the control group"] if quota is not None and quota < allowed else []
    text = f"{usable} of {there} cores usable{f' ({listed(limits)})' if limits else ''}, torch uses {threads}"
    values = {
        "model": _cpu_model(), "cores": there, "usable": usable, "quota": quota, "torch_threads": threads,
    }  # fmt: skip
    advice = ""
    if threads > usable:
        advice = f"more threads than cores slow each other down: export OMP_NUM_THREADS={usable}"
    elif threads < usable:
        by = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
        advice = f"{by or 'something'} keeps torch to {threads}: raise it where one process trains alone"
    values["load"] = load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is not None and load > BUSY_LOAD * there:
        advice = advice or "the machine is busy: what is timed below says little"
        text += f"; others keep {load:.0f} processes at work"
    yield Finding("cpu", f"{values['model']}; {text}", "note" if advice else "ok", advice, values)


def cpu_quota() -> float | None:
    """Return the cores that the control group of a container or job allows; None without such a limit."""
    quotas = []
    for folder in _control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                quotas.append(quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def memory_limit_bytes() -> int | None:
    """Return the memory that the control group allows; None without such a limit."""
    limits = []
    for folder in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    # Version 1 says "no limit" by a number that no machine has.
    return min((limit for limit in limits if limit < 2**60), default=None)


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield this process's control groups, the innermost first, of version 2 and of version 1."""
    top = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = top / controller if controllers else top
            inner = root / path.strip("/")
            # Inside of a container the path may be the host's: its own group is then the root.
            yield from (group for group in (inner, *inner.parents) if group.is_relative_to(root))
            if inner != root:
                yield root


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return re.sub(r"\((R|TM)\)| CPU| Processor", "", named[1]).strip()
    return platform.processor() or platform.machine()


def memory() -> Iterator[Finding]:
    """Say how much memory there is, and how much of it is free for us."""
    from i2i_lightning.data.cache import available_memory_bytes, gib

    total, limit, free = _total_memory_bytes(), memory_limit_bytes(), available_memory_bytes()
    usable = min((size for size in (total, limit) if size is not None), default=None)
    if usable is None:
        yield Finding("memory", "this system does not say")
        return
    free = usable if free is None else min(free, usable)
    text = f"{gib(free)} free of {gib(usable)}"
    if limit is not None and total is not None and limit < total:
        text += f", the control group's share of {gib(total)}"
    few = free < 2 * 2**30
    advice = "close other programs, or take data.cache=disk" if few else ""
    values = {"total_bytes": total, "limit_bytes": limit, "free_bytes": free}
    yield Finding("memory", text, "note" if few else "ok", advice, values)


def _total_memory_bytes() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


# -------------------- accelerators


def accelerators() -> Iterator[Finding]:
    """Describe every GPU, and say where the driver sees one that torch does not."""
    import torch

    from i2i_lightning.data.cache import gib

    drivers = _drivers()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        driver = f", driver {drivers[0]}" if drivers else ""
        text = (
            f"{device.name}, {gib(free)} free of {gib(total)}, compute capability "
            f"{device.major}.{device.minor}{driver}, CUDA {torch.version.cuda or torch.version.hip}"
        )
        busy = free < FREE_GPU_SHARE * total
        advice = "other processes hold the rest: nvidia-smi shows which" if busy else ""
        values = {
            "model": device.name, "free_bytes": free, "total_bytes": total, "driver": drivers[:1],
            "capability": [device.major, device.minor], "cuda": torch.version.cuda,
        }  # fmt: skip
        yield Finding(f"gpu {index}", text, "note" if busy else "ok", advice, values)
    mps = torch.backends.mps.is_available()
    if mps:
        yield Finding("mps", "Apple GPU, by trainer=mps", values={"available": True})
    if drivers and not count:
        yield _unusable_gpu(len(drivers), drivers[0])
    elif not count and not mps:
        yield Finding(
            "gpu",
            "none: runs go to the CPU, which is for small pictures and narrow networks",
            "note",
            values={"available": False},
        )


def _drivers() -> list[str]:
    """Return the driver's version once for each NVIDIA GPU that it sees."""
    try:
        return (
            output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or ""
        ).splitlines()
    except RuntimeError:  # installed, but there is no GPU here
        return []


def _unusable_gpu(count: int, driver: str) -> Finding:
    import torch

    values = {"seen_by_driver": count, "driver": driver, "cuda": torch.version.cuda}
    seen = f"the driver ({driver}) sees {count}, torch sees none"
    if torch.version.cuda is None:
        text = f"{seen}: torch {torch.__version__} is built for the CPU alone"
        return Finding("gpu", text, "problem", "install the CUDA build of torch: pytorch.org", values)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"{seen}: CUDA_VISIBLE_DEVICES={hidden!r} hides them"
        return Finding("gpu", text, "note", "unset CUDA_VISIBLE_DEVICES to use them", values)
    try:
        torch.zeros(1, device="cuda")
        why = "no device"
    except Exception as error:
        why = brief(error)
    advice = f"is the driver too old for CUDA {torch.version.cuda}? update one of the two"
    return Finding("gpu", f"{seen}: {why}", "problem", advice, values)


# -------------------- number formats


@dataclass(frozen=True)
class Speed:
    """How a device computes in one number format.

    Args:
        word: ``supported``, ``slow`` (works, but costs more than it should), ``emulated`` (by wider numbers)
            or ``not supported``.
        times_fp32: How many times as fast as fp32 it is; None where it does not work.
        why: What it said where it does not work.
    """

    word: str
    times_fp32: float | None
    why: str = ""


FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp64")
SLOW = {"fp32": 0.0, "tf32": 0.7, "bf16": 0.7, "fp16": 0.7, "fp64": 0.3}
"""A format that is less than so many times as fast as fp32 is called slow; fp64 moves twice the bytes."""
ROUNDS = 4
WORTHWHILE = 1.2
"""So many times as fast as fp32 is worth the coarser numbers."""


def precision(device: str) -> Iterator[Finding]:
    """Multiply and convolve in each number format on ``device``: ``cpu``, ``cuda:0``, ``mps``."""
    speeds = _measure(device)
    words = [
        f"{name} {speed.word}".replace(" ", NO_BREAK)
        + (f"{NO_BREAK}{speed.times_fp32:.1f}x" if speed.times_fp32 and name != "fp32" else "")
        for name, speed in speeds.items()
    ]
    values = {name: {"word": s.word, "times_fp32": s.times_fp32, "why": s.why} for name, s in speeds.items()}
    text = ", ".join(words)
    if speeds["fp32"].times_fp32 is None:
        text = f"does not compute: {speeds['fp32'].why}"
        yield Finding(device, text, "problem", "another build of torch, or trainer=cpu", values)
        return
    yield Finding(device, text, advice=_recommend(device, speeds), values=values)


def _recommend(device: str, speeds: dict[str, Speed]) -> str:
    def pays(name: str) -> bool:
        return name in speeds and speeds[name].word == "supported" and _times(speeds[name]) >= WORTHWHILE

    # float16 needs its losses scaled: only for GPUs that know nothing better.
    for name in ("bf16",) if device == "cpu" else ("bf16", "fp16"):
        if pays(name):
            also = " (so is precision=tf32, which keeps 32-bit activations)" if pays("tf32") else ""
            return f"precision={name} is quicker here than the default fp32{also}"
    return "precision=fp32, the default, is right here"


def _times(speed: Speed) -> float:
    return speed.times_fp32 or 0.0


def _measure(device: str) -> dict[str, Speed]:
    import torch

    types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    types |= {"fp64": torch.float64}
    if "cuda" not in device:
        del types["tf32"]
    native = _native(device)
    seconds: dict[str, float] = {}
    speeds: dict[str, Speed] = {}
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        # In turns, so that whatever else the machine does falls on all formats alike.
        for name in [*types] * ROUNDS:
            if name in speeds:
                continue
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
            try:
                seconds[name] = min(_seconds(device, types[name]), seconds.get(name, math.inf))
            except Exception as error:
                speeds[name] = Speed("not supported", None, brief(error))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    for name in types:
        if name not in speeds:
            ratio = seconds.get("fp32", seconds[name]) / seconds[name]
            if not native[name] and ratio < WORTHWHILE:
                word = "emulated"
            else:
                word = "supported" if ratio >= SLOW[name] else "slow"
            speeds[name] = Speed(word, round(ratio, 3))
    return {name: speeds[name] for name in types}


def _native(device: str) -> dict[str, bool]:
    """Return whether the device has instructions of its own for each format, as far as it says."""
    import torch

    if device.startswith("cuda"):
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        half = torch.cuda.get_device_capability(device) >= (5, 3)
        return {"fp32": True, "tf32": ampere, "bf16": ampere, "fp16": half, "fp64": True}
    if device == "mps":
        return dict.fromkeys(FORMATS, True)
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        line = re.search(r"^(?:flags|Features)\s*:(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        flags = set(line[1].split()) if line else set()
    return {
        "fp32": True,
        "tf32": False,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        "fp16": bool(flags & {"avx512_fp16", "amx_fp16", "asimdhp"}),
        "fp64": True,
    }


def _seconds(device: str, dtype: torch.dtype) -> float:
    """Return the seconds of a matrix product and a convolution, the quicker of a few tries."""
    import torch
    import torch.nn.functional as F

    # A GPU needs more work before its launches no longer count.
    side, channels, size_px = (4096, 256, 64) if device.startswith("cuda") else (384, 32, 32)
    matrix = torch.full((side, side), 0.01, dtype=dtype, device=device)
    picture = torch.full((1, channels, size_px, size_px), 0.01, dtype=dtype, device=device)
    kernel = torch.full((channels, channels, 3, 3), 0.01, dtype=dtype, device=device)
    wait = _waiting(device)

    def once() -> float:
        began = time.perf_counter()
        matrix @ matrix
        F.conv2d(picture, kernel, padding=1)
        wait()
        return time.perf_counter() - began

    with torch.inference_mode():
        once()  # loads kernels
        return min(once() for _ in range(5))


def _waiting(device: str) -> Callable[[], Any]:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.synchronize
    return torch.mps.synchronize if device == "mps" else lambda: None


def devices() -> list[str]:
    """Return the devices to examine, the best one last."""
    import torch

    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.cuda.is_available():
        found += [f"cuda:{index}" for index in reversed(range(torch.cuda.device_count()))]
    return found
