"""Many faces drawn by several processes: small pictures hold the interpreter, so that threads gain nothing.

The processes are started anew, not forked, and know nothing but their arguments; each writes the bytes of
every so-many-th face to its standard output. They import neither PyTorch nor whatever the run was started by,
and end when nobody reads any more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from i2i_lightning.data.toyfaces.dataset import ToyFaces
from i2i_lightning.data.toyfaces.render import ByteArray, render


def draw_together(faces: ToyFaces, kind: str, processes: int) -> Iterator[ByteArray]:
    """Yield one drawing of every face in order, uint8 ``(3, H, W)``.

    Args:
        faces: Which faces.
        kind: A drawing in red, green and blue.
        processes: How many draw, at least 1. What one that fails leaves undone is drawn here.
    """
    shape = (3, faces.size_px, faces.size_px)
    words = [faces.split, faces.size_px, kind, len(faces), faces.version, faces.first, processes]
    command = [sys.executable, "-m", "i2i_lightning.data.toyfaces.crew", *map(str, words)]
    crew = [
        subprocess.Popen(
            [*command, str(number)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl+C is for the run, which closes the pipes
        )
        for number in range(processes)
    ]
    try:
        for index in range(len(faces)):
            stdout = crew[index % processes].stdout
            assert stdout is not None
            content = stdout.read(3 * faces.size_px**2)
            if len(content) == 3 * faces.size_px**2:
                yield np.frombuffer(content, np.uint8).reshape(shape)
            else:
                yield render(faces.parameters(index), faces.size_px, (kind,))[kind]
    finally:
        for process in crew:
            process.kill()
            process.communicate()


def main() -> None:
    """Draw one process's share to the standard output."""
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):  # a cluster sends them to every process of a run
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    split, size_px, kind, count, version, first, processes, number = sys.argv[1:]
    faces = ToyFaces(split, int(size_px), (kind,), int(count), int(version), int(first))
    try:
        for index in range(int(number), len(faces), int(processes)):
            drawn = render(faces.parameters(index), faces.size_px, (kind,))[kind]
            sys.stdout.buffer.write(np.ascontiguousarray(drawn).data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # nobody reads any more
        os._exit(0)  # not even Python's own last words have a reader


if __name__ == "__main__":
    main()
