"""What a run leans on: other processes, SLURM, Weights & Biases, pre-trained weights, and the disk."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from i2i_lightning.diagnosis.findings import Errand, Finding, brief, listed, output_of

GIB = 2**30
LEAST_BYTES = {"outputs": GIB, "cache": GIB // 4, "temporary": GIB // 4, "shared memory": GIB // 16}
"""Less free space than this stops runs soon: a checkpoint of the paper's U-Net has 0.7 GB."""
FEW_BYTES = {"outputs": 10 * GIB, "cache": 2 * GIB, "temporary": GIB, "shared memory": GIB // 2}
SLOW_FSYNC_MS = 500.0
MEETING_LIMIT_S = 90
SERVER_LIMIT_S = 8

# -------------------- several processes

_MEET = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=60), world_size=2, rank=rank)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
assert total.item() == 3, total
dist.destroy_process_group()
"""


def meet() -> float:
    """Let two new processes on this machine add up a number over gloo; return the seconds it takes.

    Raises:
        RuntimeError: If they fail, or do not meet in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MEET, str(rank), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # What a cluster has set for a job of its own is not meant for these two.
            env={name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")},
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            errors = process.communicate(timeout=max(MEETING_LIMIT_S - (time.perf_counter() - began), 1))[1]
            if process.returncode != 0:
                words = [line for line in errors.strip().splitlines() if line.strip()]
                raise RuntimeError(words[-1] if words else f"exit status {process.returncode}")
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"they did not find each other within {MEETING_LIMIT_S} s") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return time.perf_counter() - began


def distributed(meeting: Errand[float]) -> Iterator[Finding]:
    """Say which back-ends torch has, and whether two processes could talk to each other.

    Args:
        meeting: A call of :func:`meet`, begun some time ago.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding("back-ends", "none: torch is built without torch.distributed", "problem",
                      "install another build of torch, or train on one device")  # fmt: skip
        return
    there = {
        "gloo": dist.is_gloo_available(),
        "nccl": dist.is_nccl_available(),
        "mpi": dist.is_mpi_available(),
    }
    names = [name for name, is_there in there.items() if is_there]
    lacks_nccl = torch.cuda.is_available() and torch.cuda.device_count() > 1 and not there["nccl"]
    advice = "several GPUs need nccl: install the CUDA build of torch" if lacks_nccl else ""
    yield Finding("back-ends", listed(names), "problem" if lacks_nccl else "ok", advice, there)
    try:
        seconds = meeting.result(MEETING_LIMIT_S + 5)
    except (RuntimeError, TimeoutError) as error:
        advice = (
            "does this machine's name resolve (getent hosts $(hostname))? else export GLOO_SOCKET_IFNAME=lo"
        )
        yield Finding("two processes", f"gloo on localhost fails: {brief(error)}", "problem", advice,
                      {"met": False})  # fmt: skip
        return
    text = f"met over gloo on localhost and added up, {seconds:.1f} s with the start of both"
    yield Finding("two processes", text, values={"met": True, "seconds": round(seconds, 2)})


# -------------------- SLURM


def slurm() -> Iterator[Finding]:
    """Say whether jobs can be submitted here, where to, and what job this process is in."""
    inside = os.environ.get("SLURM_JOB_ID")
    try:
        found = output_of("sbatch", "--version")
    except RuntimeError as error:
        text = f"sbatch is installed, but knows no cluster: {brief(error)}"
        advice = "is slurm.conf in place, and this machine part of the cluster?"
        yield Finding("slurm", text, "problem", advice, {"found": True, "job": inside})
        return
    if found is None:
        text = "no sbatch here: runs start on this machine, launcher=slurm does not work"
        advice = "launcher=slurm launcher.dry_run=true writes a script to take along"
        yield Finding("slurm", text, "note", advice, {"found": False, "job": inside})
    else:
        try:
            srun = output_of("srun", "--version")
        except RuntimeError:
            srun = None
        text = found if srun else f"{found}, but no srun that works beside sbatch"
        about = {"found": True, "version": found.removeprefix("slurm").strip(), "job": inside}
        yield Finding("slurm", text, "ok" if srun else "problem", values=about)
        yield _partitions()
    if inside:
        names = {"SLURM_JOB_PARTITION": "partition", "SLURM_NTASKS": "tasks", "SLURM_JOB_NUM_NODES": "nodes",
                 "SLURM_GPUS_ON_NODE": "GPUs", "SLURM_JOB_NODELIST": "on"}  # fmt: skip
        parts = [f"{word} {os.environ[name]}" for name, word in names.items() if os.environ.get(name)]
        values = {word: os.environ.get(name) for name, word in names.items()} | {"id": inside}
        yield Finding("job", f"inside job {inside}: {listed(parts)}", values=values)


def _partitions() -> Finding:
    try:
        lines = (output_of("sinfo", "--noheader", "--format=%P|%a|%l|%D") or "").splitlines()
    except RuntimeError as error:
        text = f"the controller does not answer: {brief(error)}"
        return Finding(
            "partitions", text, "problem", "is slurmctld running, and this machine part of the cluster?"
        )
    rows = [line.split("|") for line in lines if line.count("|") == 3]
    partitions = [
        {
            "name": name.rstrip("*"),
            "default": name.endswith("*"),
            "state": state,
            "limit": limit,
            "nodes": nodes,
        }
        for name, state, limit, nodes in rows
    ]
    words = [
        f"{row['name']}{' (default)' if row['default'] else ''}: {row['nodes']} nodes, limit {row['limit']}"
        + ("" if row["state"] == "up" else f", {row['state']}")
        for row in partitions
    ]
    if not words:
        return Finding("partitions", "none is open to you", "problem", "ask who runs the cluster")
    return Finding("partitions", "; ".join(words), values={"partitions": partitions})


# -------------------- Weights & Biases


def wandb_server() -> str:
    """Return the address of the server that runs are sent to."""
    from i2i_lightning.loggers.wandb_log import server_address

    return server_address()


def reach_wandb() -> float:
    """Ask the server for anything at all; return the seconds until it answers.

    Raises:
        OSError: If it does not.
    """
    began = time.perf_counter()
    request = urllib.request.Request(f"{wandb_server()}/healthz", headers={"User-Agent": "i2i-doctor"})
    try:
        with urllib.request.urlopen(request, timeout=SERVER_LIMIT_S):
            pass
    except urllib.error.HTTPError as answer:  # whatever it thinks of the question, it is there
        if answer.code in (407, 502, 503, 504):  # that was a proxy
            raise OSError(f"a proxy answers {answer.code} {answer.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{error.reason}") from None
    return time.perf_counter() - began


def wandb(reaching: Errand[float]) -> Iterator[Finding]:
    """Say whether logger=wandb works here and in which mode; the key itself is never shown.

    Args:
        reaching: A call of :func:`reach_wandb`, begun some time ago.
    """
    try:
        installed = version("wandb")
    except PackageNotFoundError:
        text = "not installed: logger=wandb does not work; metrics.csv and index.html are written in any case"
        yield Finding("wandb", text, "note", "pip install 'i2i_lightning[wandb]'", {"installed": None})
        return
    from i2i_lightning.loggers.wandb_log import has_key

    key = has_key()
    asked = os.environ.get("WANDB_MODE")
    mode = {"dryrun": "offline", "run": "online"}.get(asked or "", asked) or ("online" if key else "offline")
    reason = "WANDB_MODE says so" if asked else f"a key is {'' if key else 'not '}configured"
    values = {"installed": installed, "has_key": key, "mode": mode, "server": wandb_server()}
    text = f"{installed}; logger=wandb would run {mode}, because {reason}"
    if mode == "online" and not key:
        advice = "set WANDB_API_KEY, or run: wandb login"
        yield Finding("wandb", f"{text}, but there is no key", "problem", advice, values)
    else:
        advice = "" if key or asked else "wandb login, to log online; or send runs later with: wandb sync"
        yield Finding("wandb", text, advice=advice, values=values)
    try:
        seconds = reaching.result(SERVER_LIMIT_S)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        why = brief(error) if isinstance(error, ValueError) else str(error)
        text = f"{wandb_server()} cannot be reached: {why}"
        advice = (
            "logger.wandb.mode=offline, and send the runs from elsewhere; or set https_proxy, WANDB_BASE_URL"
        )
        blocked = mode == "online"
        yield Finding("server", text, "problem" if blocked else "note", advice if blocked else "",
                      {"reachable": False})  # fmt: skip
        return
    yield Finding(
        "server", f"{wandb_server()} answers", values={"reachable": True, "seconds": round(seconds, 2)}
    )


# -------------------- pre-trained weights


def metric_weights() -> Iterator[Finding]:
    """Say which pre-trained weights are at hand, going by their sizes."""
    from i2i_lightning.weights.catalogue import CATALOGUE
    from i2i_lightning.weights.store import at_hand, default_folder

    folder = default_folder()
    there, missing = [], []
    for name in CATALOGUE:
        found = at_hand(name, folder)
        damaged = [file for form, file in found if file.stat().st_size != form.file.size_bytes]
        for file in damaged:
            text = f"{file} has the wrong size ({file.stat().st_size} B)"
            yield Finding(name, text, "problem", f"i2i-weights get {name}", {"file": str(file)})
        if not found:
            missing.append(name)
        elif not damaged:
            there.append(name)
    values = {"folder": str(folder), "there": there, "missing": missing}
    yield Finding("at hand", f"{listed(there)} in {folder}", values=values)
    if missing:
        advice = (
            "i2i-weights get NAME, if you want these metrics (lpips_*, fid, kid) or this generator (ffhq_*)"
        )
        yield Finding("missing", listed(missing), "note", advice, {"names": missing})


# -------------------- disk


def disk() -> Iterator[Finding]:
    """Try the folders that runs write to: room, a write, a hard link, and how long a safe write takes."""
    from i2i_lightning.data.cache import default_cache_dir

    yield folder("outputs", Path("outputs"), "run elsewhere, or give hydra.run.dir=...")
    yield folder("cache", default_cache_dir(), "set XDG_CACHE_HOME, or give data.cache_dir=...")
    yield folder("temporary", Path(tempfile.gettempdir()), "set TMPDIR")
    if Path("/dev/shm").is_dir():
        advice = "loader workers pass batches through it: docker run --shm-size=2g, or data.num_workers=0"
        yield folder("shared memory", Path("/dev/shm"), advice, is_disk=False)


def folder(name: str, path: Path, advice: str, is_disk: bool = True) -> Finding:
    """Try one folder. One that is not there yet is tried where it would be made.

    Args:
        name: What it is for: a key of ``LEAST_BYTES``.
        path: The folder.
        advice: What to do if it is of no use.
        is_disk: Whether links and safe writes matter there.
    """
    from i2i_lightning.data.cache import gib

    path = path.absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    where = str(path) if there == path else f"{path} (to be made)"
    values: dict[str, object] = {"path": str(path), "exists": there == path, "writable": False}
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".i2i-doctor-") as probe:
            links = _hard_links(Path(probe))
            fsync_ms = _fsync_ms(Path(probe)) if is_disk else None
        state = os.statvfs(there)
    except OSError as error:
        values["error"] = error.strerror or str(error)
        return Finding(name, f"{where}: cannot be written ({values['error']})", "problem", advice, values)
    free = state.f_bavail * state.f_frsize
    values |= {"writable": True, "free_bytes": free, "hard_links": links, "fsync_ms": fsync_ms}
    text = f"{where}: {gib(free)} free"
    if is_disk:
        text += f", hard links {'work' if links else 'do not work'}, safe write of 1 MiB {fsync_ms:.0f} ms"
    if state.f_files and not state.f_favail:
        return Finding(name, f"{text}; no inode is left", "problem", advice, values)
    if free < LEAST_BYTES[name]:
        return Finding(name, f"{text}: too little", "problem", advice, values)
    if free < FEW_BYTES[name]:
        return Finding(name, text, "note", f"not much room: {advice}", values)
    if fsync_ms is not None and fsync_ms > SLOW_FSYNC_MS and name == "outputs":
        slow = "a slow disk: fewer checkpoints (callbacks.checkpoints.every_n_epochs), or another disk"
        return Finding(name, text, "note", slow, values)
    if is_disk and not links and name == "outputs":
        return Finding(name, text, "note", "best.ckpt and last.ckpt will be copies: twice the room", values)
    return Finding(name, text, values=values)


def _hard_links(folder: Path) -> bool:
    (folder / "file").write_bytes(b"file")
    with suppress(OSError, NotImplementedError):
        os.link(folder / "file", folder / "link")
        return True
    return False


def _fsync_ms(folder: Path) -> float:
    """Return the milliseconds until a MiB is surely on the disk: the median of three."""
    times_ms = []
    for number in range(3):
        began = time.perf_counter()
        with (folder / f"safe-{number}").open("wb") as file:
            file.write(os.urandom(2**20))
            file.flush()
            os.fsync(file.fileno())
        times_ms.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times_ms), 2)
