"""Fetching a pinned file from a server on this machine."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys

import pytest

from i2i_lightning.types import UserError
from i2i_lightning.weights import download
from i2i_lightning.weights.catalogue import Pinned
from i2i_lightning.weights.download import Client, SourceError, fetch, is_whole, shown

CONTENT = bytes(range(256)) * 1000
PINNED = Pinned("weights.pth", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def part(tmp_path):
    return tmp_path / "weights.pth.part"


@pytest.fixture(autouse=True)
def _served(server):
    server.files["/weights.pth"] = CONTENT


def test_it_arrives_whole(server, part):
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert part.read_bytes() == CONTENT
    assert is_whole(part, PINNED)
    assert len(server.requests) == 1


def test_a_cut_connection_is_resumed(server, part):
    server.faults["/weights.pth"] = ["100000", "50000"]
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert part.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, part):
    server.faults["/weights.pth"] = ["1000", "1000", "1000"]
    with pytest.raises(SourceError, match=r"cut.*; 3000 of 256000 B are kept"):
        fetch(Client(), server.url("/weights.pth"), PINNED, part)
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert part.read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=3000-"


def test_a_server_without_ranges_starts_over(server, part):
    server.ignores_ranges = True
    part.write_bytes(CONTENT[:5000])
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_what_is_left_of_another_file_is_dropped(server, part, left):
    part.write_bytes(left)
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert part.read_bytes() == CONTENT


def test_a_file_of_the_right_size_with_another_byte_is_refused(server, part):
    other = b"\1" + CONTENT[1:]
    server.files["/weights.pth"] = other
    with pytest.raises(SourceError) as error:
        fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert hashlib.sha256(other).hexdigest() in str(error.value)
    assert f"expected {PINNED.sha256}" in str(error.value)
    assert not part.exists()


def test_a_page_in_its_place_is_refused_by_its_size(server, part):
    server.files["/weights.pth"] = b"<html>please log in</html>"
    with pytest.raises(SourceError, match=r"26 B, expected 256000 B"):
        fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert not part.exists()


def test_no_more_is_taken_than_expected(server, part):
    server.says_length = False
    server.files["/weights.pth"] = CONTENT * 20
    with pytest.raises(SourceError, match="longer than 256000 B"):
        fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert part.stat().st_size == 0


def test_not_found_is_not_asked_again(server, part):
    with pytest.raises(SourceError, match=r"/missing.pth: HTTP 404 Not Found$"):
        fetch(Client(), server.url("/missing.pth"), PINNED, part)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, part):
    server.faults["/weights.pth"] = [503, 429]
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert is_whole(part, PINNED)


def test_no_network_is_one_line(part):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(SourceError, match=rf"^http://127.0.0.1:{port}/w.pth: Connection refused$"):
        fetch(Client(), f"http://127.0.0.1:{port}/w.pth", PINNED, part)


def test_a_silent_server_is_given_up(monkeypatch, part):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth"
        with pytest.raises(SourceError, match="no answer within"):
            fetch(Client(), url, PINNED, part)


def test_the_proxy_of_the_environment_is_asked(server, part, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url(""))
    server.files["http://weights.invalid/weights.pth"] = CONTENT
    fetch(Client(), "http://weights.invalid/weights.pth", PINNED, part)
    assert server.paths() == ["http://weights.invalid/weights.pth"]
    part.unlink()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert server.paths()[1] == "/weights.pth"


def test_a_password_goes_to_its_host_and_into_no_message(server, part):
    server.redirects["/private"] = server.url("/weights.pth", host="localhost")
    fetch(Client(), f"http://me:se%40cret@127.0.0.1:{server.port}/private", PINNED, part)
    first, second = (headers for _, headers in server.requests)
    assert first["authorization"] == "Basic bWU6c2VAY3JldA=="
    assert "authorization" not in second
    with pytest.raises(SourceError) as error:
        fetch(Client(), f"http://me:secret@127.0.0.1:{server.port}/missing", PINNED, part.with_name("b"))
    assert "secret" not in str(error.value)
    assert shown("https://me:secret@host/a?token=b#c") == "https://host/a"


def test_a_full_disk_is_one_line(server, part):
    part.symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full") as error:
        fetch(Client(), server.url("/weights.pth"), PINNED, part)
    assert not isinstance(error.value, SourceError)


def test_an_unwritable_folder_is_one_line(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be written.*--folder"):
        fetch(Client(), server.url("/weights.pth"), PINNED, tmp_path / "file" / "weights.part")


@pytest.mark.parametrize("variable", ["PIP_CERT", "REQUESTS_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_named(monkeypatch, variable):
    monkeypatch.setenv(variable, "/nowhere/bundle.pem")
    with pytest.raises(UserError, match=rf"^{variable}=/nowhere/bundle.pem: "):
        Client()


def test_importing_it_needs_no_torch(checkout):
    """``i2i-weights`` answers at once."""
    code = "import sys, i2i_lightning.weights.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0
