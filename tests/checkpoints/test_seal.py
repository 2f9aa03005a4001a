"""A sealed checkpoint knows when it is damaged, wherever that is; one without a seal still opens."""

from __future__ import annotations

import hashlib
import random
import zipfile
from pathlib import Path

import pytest
import torch

from i2i_lightning.checkpoints.io import read_checkpoint, remove_leftovers, write_beside
from i2i_lightning.checkpoints.seal import SEAL_BYTES, seal, what_is_wrong
from i2i_lightning.types import UserError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.arange(2000.0)}, "note": "x" * 100}, path)
    seal(path)
    return path


def test_a_sealed_file_is_an_ordinary_archive(sealed: Path) -> None:
    assert what_is_wrong(sealed) is None
    assert torch.equal(torch.load(sealed, weights_only=True)["state_dict"]["a"], torch.arange(2000.0))
    comment = zipfile.ZipFile(sealed).comment
    content = sealed.read_bytes()[:-SEAL_BYTES]
    assert comment == b"sha256:" + hashlib.sha256(content[:-2] + b"\0\0").hexdigest().encode()


def test_every_flipped_byte_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    random.seed(0)
    # Everywhere in the file, and at each place that says that there is a seal.
    end = range(len(content) - SEAL_BYTES - 22, len(content))
    places = [0, 1, *random.sample(range(len(content)), 200), *end]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 0x40
        sealed.write_bytes(flipped)
        with pytest.raises(UserError, match=r"last\.ckpt: not a (whole )?checkpoint file") as error:
            read_checkpoint(sealed)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_noticed(sealed: Path, share: float) -> None:
    content = sealed.read_bytes()
    sealed.write_bytes(content[: int(share * len(content))])
    assert what_is_wrong(sealed) in ("it is empty", "its end is missing or damaged")
    with pytest.raises(UserError, match="not a"):
        read_checkpoint(sealed)


def test_torch_itself_does_not_notice(sealed: Path) -> None:
    """Why there is a seal at all."""
    content = bytearray(sealed.read_bytes())
    content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 0x40
    sealed.write_bytes(content)
    assert not torch.equal(torch.load(sealed, weights_only=True)["state_dict"]["a"], torch.arange(2000.0))
    with pytest.raises(UserError, match="checksum mismatch"):
        read_checkpoint(sealed)


def test_a_file_without_a_seal_opens(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}}, path)
    assert what_is_wrong(path) is None
    assert read_checkpoint(path) == {"state_dict": {}}
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path) == {"state_dict": {}}


def test_only_a_plain_archive_is_sealed(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a comment"):
        seal(sealed)
    text = tmp_path / "text"
    text.write_text("no archive at all, but long enough to look like one")
    with pytest.raises(ValueError, match="not a zip archive"):
        seal(text)


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    kept = [tmp_path / "last.ckpt", tmp_path / "checkpoints" / ".tmp", tmp_path / ".notes.tmp"]
    gone = [tmp_path / ".index.html.123.tmp", tmp_path / "checkpoints" / ".last.ckpt.99.tmp"]
    for path in (*kept, *gone):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux to see which file is meant")
def test_what_is_written_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = __import__("os").fsync, __import__("os").replace

    def note_fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr("os.replace", note_replace)
    write_beside(tmp_path / "file", Path.touch)
    assert done[1:] == ["rename", tmp_path.name]
    assert done[0].startswith(".file.")
