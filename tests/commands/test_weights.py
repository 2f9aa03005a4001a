"""``i2i-weights``: what it prints, what it returns, and that a slip is one line."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from i2i_lightning.commands.weights import main
from i2i_lightning.weights.catalogue import CATALOGUE, Form, Pinned, Weights

CONTENT = {"one": b"1" * 1000, "two": b"2" * 2000}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A weights folder to be, and a catalogue of two tiny files that nothing serves."""
    monkeypatch.delenv("I2I_WEIGHTS_DOWNLOAD", raising=False)
    monkeypatch.setenv("I2I_WEIGHTS", str(tmp_path / "w"))
    for name in list(CATALOGUE):
        monkeypatch.delitem(CATALOGUE, name)
    for name, content in CONTENT.items():
        pinned = Pinned(f"{name}.pth", len(content), hashlib.sha256(content).hexdigest())
        url = (tmp_path / "nowhere" / f"{name}.pth").as_uri()
        form = Form(pinned, "torchvision", urls=(url,))
        monkeypatch.setitem(CATALOGUE, name, Weights(name, f"metric {name}", "MIT", (form,)))
    return tmp_path / "w"


@pytest.fixture
def stick(tmp_path):
    """Where a user has both files."""
    (tmp_path / "stick").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "stick" / f"{name}.pth").write_bytes(content)
    return tmp_path / "stick"


def fails(*words):
    with pytest.raises(SystemExit) as error:
        main([str(word) for word in words])
    return error.value.code


def test_list_tells_what_is_at_hand(folder, capsys):
    main(["list"])
    text = capsys.readouterr().out
    assert f"weights folder: {folder} (not there yet)" in text
    for words in ("for      metric one", "licence  MIT", "size     0.0 MB (official)"):
        assert words in text
    assert "at hand  no; i2i-weights get two" in text
    folder.mkdir()
    (folder / "one.pth").write_bytes(CONTENT["one"])
    (folder / "two.pth").write_bytes(b"2")
    main(["list"])
    text = capsys.readouterr().out
    assert "at hand  one.pth\n" in text
    assert "at hand  two.pth (DAMAGED: wrong size)" in text


def test_get_from_a_folder_then_verify(folder, stick, capsys):
    main(["get", "all", "--from", str(stick)])
    assert capsys.readouterr().out.count("now at hand") == 2
    assert (folder / "one.pth").read_bytes() == CONTENT["one"]
    main(["verify"])
    assert capsys.readouterr().out == f"one: {folder}/one.pth: right\ntwo: {folder}/two.pth: right\n"


def test_all_leaves_out_what_is_restricted(folder, stick, monkeypatch, capsys):
    entry = replace(CATALOGUE["two"], restricted=True)
    monkeypatch.setitem(CATALOGUE, "two", entry)
    main(["get", "all", "--from", str(stick)])
    main(["verify", "all"])
    text = capsys.readouterr().out
    assert "two" not in text
    main(["get", "two", "--from", str(stick)])
    assert capsys.readouterr().out.startswith("two: licence: MIT\n")
    main(["verify"])
    assert f"two: {folder}/two.pth: right" in capsys.readouterr().out


def test_another_folder_may_be_named(folder, stick, tmp_path, capsys):
    main(["get", "one", "--from", str(stick / "one.pth"), "--folder", str(tmp_path / "other")])
    main(["verify", "one", "--folder", str(tmp_path / "other")])
    assert capsys.readouterr().out.endswith("one.pth: right\n")
    assert not folder.exists()


def test_verify_finds_a_flipped_byte(folder, stick, capsys):
    main(["get", "all", "--from", str(stick)])
    (folder / "two.pth").write_bytes(b"2" * 1999 + b"3")
    assert fails("verify") == 1
    text = capsys.readouterr().out
    assert "one.pth: right" in text
    assert "two.pth: has sha256" in text
    main(["verify", "one"])


def test_verify_wants_what_is_named(folder, stick, capsys):
    assert "no weights to verify" in fails("verify")
    main(["get", "one", "--from", str(stick)])
    assert fails("verify", "one", "two") == 1
    assert f"two: not at hand in {folder}; i2i-weights get two" in capsys.readouterr().out
    assert fails("verify", "all") == 1


def test_slips_are_a_line_each(folder, stick, tmp_path):
    assert fails("get", "three") == "i2i-weights: weights 'three': no such name; there are one, two"
    assert fails("get", "one", "--from", tmp_path / "gone").endswith(
        "no such file or folder to take weights from"
    )
    lines = fails("get", "one").splitlines()
    assert lines[0] == "i2i-weights: one: could not be fetched"
    assert "No such file or directory" in lines[1]
    assert len(lines) == 2
    assert "cannot be written (Not a directory)" in fails(
        "get", "one", "--from", stick, "--folder", stick / "one.pth" / "w"
    )
    assert fails() == 2
    assert fails("get") == 2


def test_help_and_list_load_no_torch(checkout):
    code = (
        "import sys; from i2i_lightning.commands.weights import main; main(['list']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "fid_inception" in done.stdout
