"""How the processes of a run find each other under SLURM.

``srun`` starts the processes and tells each its rank. What it does not tell is where rank 0 listens: names of
nodes need not resolve, and a rank that waits in vain says nothing for half an hour. So the ranks meet here
first, at the address and port that torch uses right afterwards, and say whom they wait for.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from i2i_lightning.strategies.requeue import in_slurm, restart_count
from i2i_lightning.types import UserError

INTERACTIVE_NAMES = ("bash", "interactive")
"""Names of the jobs that ``srun --pty bash`` and ``salloc`` start."""

PROCESSES_OF_OUR_OWN = ("spawn", "fork", "notebook")
"""Parts of the names of strategies that start processes, which is SLURM's part here."""

CHOICE = "MASTER_ADDR=... and MASTER_PORT=... choose another"
RENDEZVOUS_TIMEOUT_S = 600.0
SAY_EVERY_S = 15.0


def cluster_environment() -> ClusterEnvironment | None:
    """Return the environment that started this process, where Lightning would guess it wrong; else None.

    Several tasks of ``srun`` are one run. In a batch script, in an interactive shell and as a single task
    this is an ordinary run, which may start processes of its own.

    Raises:
        UserError: If SLURM spread the tasks unevenly over the nodes.
    """
    if not in_slurm() or TorchElasticEnvironment.detect():
        return None
    if _is_one_of_several_tasks():
        return SlurmTasks()
    allotted = _number("SLURM_NTASKS", 1)
    by_srun, by_lightning = "SLURM_STEP_ID" in os.environ, "LOCAL_RANK" in os.environ
    if allotted > 1 and not (by_srun or by_lightning or _has_interactive_name()):
        print(
            f"SLURM holds {allotted} tasks for this job, but did not start this process: it runs alone. "
            "Put srun in front of the command",
            file=sys.stderr,
            flush=True,
        )
    return LightningEnvironment()


def _is_one_of_several_tasks() -> bool:
    if _number("SLURM_STEP_NUM_TASKS", 1) == 1 or "SLURM_PROCID" not in os.environ:
        return False
    # A shell that was given several tasks is the first of them; what a person starts in it stands alone.
    return not (_has_interactive_name() and os.isatty(0))


def _has_interactive_name() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in INTERACTIVE_NAMES


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


class SlurmTasks(ClusterEnvironment):
    """The tasks that one ``srun`` started, as the ranks of one run.

    Lightning's own ``SLURMEnvironment`` is no base for it: that one requeues in the middle of a step, wants
    ``--ntasks-per-node`` by name, and takes the name of a node for its address.

    Raises:
        UserError: If the nodes hold different numbers of tasks.
    """

    def __init__(self) -> None:
        super().__init__()
        spread = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        if len(set(spread)) != 1:
            raise UserError(
                f"srun started {' + '.join(map(str, spread))} tasks on {len(spread)} nodes; every node needs "
                "as many as the others\ngive --nodes and --ntasks-per-node"
            )
        self.num_nodes = len(spread)
        self.num_tasks_per_node = spread[0]

    @property
    def creates_processes_externally(self) -> bool:
        """Whether the processes run already: yes, SLURM started them."""
        return True

    @cached_property
    def main_address(self) -> str:
        """Where rank 0 listens: ``MASTER_ADDR`` if that is set, else the first node of these tasks.

        Raises:
            UserError: If nobody knows the address of that node.
        """
        if given := os.environ.get("MASTER_ADDR"):
            return given
        if self.num_nodes == 1:
            return "127.0.0.1"
        return node_address(first_node(os.environ["SLURM_STEP_NODELIST"]))

    @property
    def main_port(self) -> int:
        """``MASTER_PORT`` if that is set, else one that neither another step takes nor the next jobs."""
        job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
        # Below the ports that systems hand out to clients; ten steps of a job have ports of their own.
        return _number("MASTER_PORT", 15000 + (10 * job + step) % 10000)

    @staticmethod
    def detect() -> bool:
        """Return whether this process is one of several tasks."""
        return in_slurm() and _is_one_of_several_tasks()

    def world_size(self) -> int:
        """Return the number of tasks."""
        return self.num_nodes * self.num_tasks_per_node

    def set_world_size(self, size: int) -> None:
        """Change nothing: SLURM decides."""

    def global_rank(self) -> int:
        """Return the number of this task among all."""
        return _number("SLURM_PROCID", 0)

    def set_global_rank(self, rank: int) -> None:
        """Change nothing: SLURM decides."""

    def local_rank(self) -> int:
        """Return the number of this task on its node."""
        return _number("SLURM_LOCALID", 0)

    def node_rank(self) -> int:
        """Return the number of this task's node."""
        return _number("SLURM_NODEID", 0)


def tasks_per_node(text: str) -> list[int]:
    """Return what SLURM writes as ``2(x3),1``: here [2, 2, 2, 1]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))] or [1]


def first_node(nodes: str) -> str:
    """Return the first name of a list that SLURM writes as ``gpu[03-05,9],cpu1``: here gpu03."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def node_address(node: str) -> str:
    """Return the name or number under which ``node`` can be reached: its own if it resolves, else SLURM's.

    Raises:
        UserError: If the name does not resolve, and SLURM has no other.
    """
    with contextlib.suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    text = ""
    if shutil.which("scontrol"):
        command = ["scontrol", "--oneliner", "show", "node", node]
        with contextlib.suppress(subprocess.TimeoutExpired):
            text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    address = re.search(r"\bNodeAddr=(\S+)", text)
    with contextlib.suppress(OSError):
        if address is not None:
            socket.getaddrinfo(address[1], None)
            return address[1]
    raise UserError(
        f"node {node}, where rank 0 runs: its name does not resolve, and scontrol names no other address"
        "\nexport MASTER_ADDR=<address of the first node>"
    )


def trainer_settings(
    environment: ClusterEnvironment | None, devices: Any, num_nodes: int, strategy: Any
) -> dict[str, Any]:
    """Return the arguments of the trainer that follow from SLURM's tasks; none outside of them.

    One task drives one device. One device or ``auto``, and one node, mean as many as SLURM gave.

    Args:
        environment: What started this process.
        devices: ``trainer.devices`` of the config.
        num_nodes: ``trainer.num_nodes`` of the config.
        strategy: ``trainer.strategy`` of the config; ``auto`` becomes the one that suits GANs.

    Raises:
        UserError: If the config asks for other numbers, or for processes of its own.
    """
    if not isinstance(environment, SlurmTasks):
        return {}
    tasks, nodes = environment.num_tasks_per_node, environment.num_nodes
    wanted = len(devices) if isinstance(devices, (list, tuple)) else devices
    if str(wanted) not in ("1", "-1", "auto", str(tasks)):
        raise UserError(
            f"trainer.devices={wanted}: srun started {tasks} tasks on each node, one for each device"
            f"\ngive trainer.devices={tasks}, or srun --ntasks-per-node={wanted}"
        )
    if num_nodes not in (1, nodes):
        raise UserError(
            f"trainer.num_nodes={num_nodes}: srun started tasks on {nodes}"
            f"\ngive trainer.num_nodes={nodes}, or srun --nodes={num_nodes}"
        )
    if isinstance(strategy, str) and any(part in strategy for part in PROCESSES_OF_OUR_OWN):
        raise UserError(f"trainer.strategy={strategy}: srun starts the processes; take trainer.strategy=auto")
    chosen = "ddp_find_unused_parameters_true" if strategy == "auto" else strategy
    ids = list(devices) if isinstance(devices, (list, tuple)) else tasks
    return {"devices": ids, "num_nodes": nodes, "strategy": chosen}


def meet(
    environment: ClusterEnvironment | None,
    timeout_s: float = RENDEZVOUS_TIMEOUT_S,
    say_every_s: float = SAY_EVERY_S,
) -> None:
    """Wait until every task of ``srun`` has reached rank 0, and say every so often who is waited for.

    Called before torch meets at the same address, so that a firewall, a wrong address or a rank that has died
    is a message, and not a silence. Outside of SLURM's tasks there is nobody to meet.

    Args:
        environment: What started this process.
        timeout_s: Seconds to wait.
        say_every_s: Seconds between two messages.

    Raises:
        UserError: If not all have come in time; it names address and ranks.
    """
    if isinstance(environment, SlurmTasks) and environment.world_size() > 1:
        _Meeting(environment, timeout_s, say_every_s).hold()


class _Meeting:
    """One attempt of all ranks to find each other: rank 0 listens, the others call."""

    def __init__(self, environment: SlurmTasks, timeout_s: float, say_every_s: float) -> None:
        self.rank, self.ranks = environment.global_rank(), environment.world_size()
        self.address, self.port = environment.main_address, environment.main_port
        job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
        self.password = f"i2i_lightning {job}.{step}.{restart_count()}"
        self.timeout_s, self.say_every_s = timeout_s, say_every_s
        self.began = self.said = time.monotonic()

    def hold(self) -> None:
        if self.rank == 0:
            self._receive()
        else:
            self._call()

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"

    def _check_time(self, awaited: str, advice: str) -> None:
        """Say whom we wait for, once in a while; stop when the time is up."""
        now = time.monotonic()
        waited = now - self.began
        who = f"rank {self.rank} of {self.ranks}"
        if waited > self.timeout_s:
            raise UserError(
                f"{who} waited {self.timeout_s:.0f} s in vain for {awaited} at {self.place}\n{advice}"
            )
        if now - self.said >= self.say_every_s:
            self.said = now
            where = f"{self.place} on {socket.gethostname()}" if self.rank == 0 else self.place
            print(f"{who} waits for {awaited} at {where} ({waited:.0f} s)", flush=True)

    # -------------------- rank 0

    def _receive(self) -> None:
        present: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as stack:
            with self._listen() as server:
                server.settimeout(0.5)
                while True:
                    if len(present) == self.ranks - 1:
                        # One that has died since is missing again.
                        present = {rank: line for rank, line in present.items() if not _has_hung_up(line)}
                    if len(present) == self.ranks - 1:
                        break
                    missing = sorted(set(range(1, self.ranks)) - set(present))
                    self._check_time(
                        _name_ranks(missing),
                        f"see their logs for an error; their nodes must reach this address ({CHOICE})",
                    )
                    with contextlib.suppress(TimeoutError):
                        visitor = stack.enter_context(server.accept()[0])
                        rank = self._recognize(visitor)
                        if rank is not None:
                            present[rank] = visitor
            for visitor in present.values():  # the port is free again, for torch
                with contextlib.suppress(OSError):
                    visitor.sendall(b"go")

    def _listen(self) -> socket.socket:
        while True:
            try:
                if socket.has_dualstack_ipv6():
                    return socket.create_server(
                        ("", self.port), family=socket.AF_INET6, backlog=self.ranks, dualstack_ipv6=True
                    )
                return socket.create_server(("", self.port), backlog=self.ranks)
            except OSError as error:  # an attempt that SLURM has only just ended may still hold the port
                self._check_time("the port", f"{error.strerror}; MASTER_PORT=... chooses another")
                time.sleep(0.5)

    def _recognize(self, visitor: socket.socket) -> int | None:
        """Return the rank of a caller; None for a stranger."""
        visitor.settimeout(2)
        with contextlib.suppress(OSError, ValueError):
            password, _, rank = visitor.makefile().readline().strip().rpartition(" ")
            if password == self.password and 0 < int(rank) < self.ranks:
                return int(rank)
        return None

    # -------------------- the others

    def _call(self) -> None:
        reason = ""
        while True:
            self._check_time(
                "rank 0",
                f"{reason}; see the log of rank 0 for an error; this node must reach that address ({CHOICE})",
            )
            try:
                with socket.create_connection((self.address, self.port), timeout=5) as line:
                    line.sendall(f"{self.password} {self.rank}\n".encode())
                    if self._is_answered(line):
                        return
                reason = "somebody else answers there"
            except OSError as error:
                reason = error.strerror or str(error)
            time.sleep(0.5)

    def _is_answered(self, line: socket.socket) -> bool:
        """Return whether rank 0 lets us go on; False if it hangs up."""
        line.settimeout(0.5)
        while True:
            try:
                return line.recv(2) == b"go"
            except TimeoutError:
                self._check_time("the other ranks", "rank 0 is there: its log says who is missing")


def _has_hung_up(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _name_ranks(ranks: Iterable[int]) -> str:
    names = list(map(str, ranks))
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"rank{'s' if len(names) > 1 else ''} {shown}"
