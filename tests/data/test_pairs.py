"""Which files form a pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2i_lightning.data.pairs import find_pairs, list_images, report
from i2i_lightning.types import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(root: Path, layout: str, split: str, **options: object) -> list[str]:
    return [files.name for files in find_pairs(root, layout, **options).splits[split]]  # type: ignore[arg-type]


def test_images_are_found_in_subfolders_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.JPG", "sub/c.tif", "notes.txt", ".hidden.png", ".cache/d.png", "Thumbs.db")
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == [
        "a.JPG",
        "b.png",
        "sub/c.tif",
    ]


def test_side_by_side(tmp_path: Path) -> None:
    touch(tmp_path, "train/2.jpg", "train/1.jpg", "train/x/1.jpg", "val/9.png", "test/8.png")
    assert names(tmp_path, "side_by_side", "train") == ["1", "2", "x/1"]
    assert names(tmp_path, "side_by_side", "val") == ["9"]
    assert names(tmp_path, "side_by_side", "test") == ["8"]


@pytest.mark.parametrize("pattern", ["{split}{side}", "{split}_{side}", "{split}/{side}", "{side}/{split}"])
def test_two_folders_in_any_of_the_usual_arrangements(tmp_path: Path, pattern: str) -> None:
    for split in ("train", "val", "test"):
        for side, suffix in (("A", "png"), ("B", "jpg")):
            touch(tmp_path / pattern.format(split=split, side=side), f"{split}.{suffix}", f"sub/2.{suffix}")
    found = find_pairs(tmp_path, "folders")
    assert not found.notes
    for split in ("train", "val", "test"):
        assert sorted(files.name for files in found.splits[split]) == sorted(["sub/2", split])
        for files in found.splits[split]:
            assert files.b is not None
            assert (files.a.suffix, files.b.suffix) == (".png", ".jpg")


def test_explicit_folders(tmp_path: Path) -> None:
    for side in ("left", "right"):
        touch(tmp_path / side, *[f"{index:02d}.png" for index in range(20)])
    found = find_pairs(None, "folders", tmp_path / "left", tmp_path / "right")
    assert len(found.splits["train"]) == 18
    assert [files.name for files in found.splits["val"]] == ["05", "15"]
    assert found.splits["test"] is found.splits["val"]
    assert "2 of 20 pairs are held out" in found.notes["train"]
    for side in ("left", "right"):
        touch(tmp_path / side, "train/1.png", "val/2.png")
    found = find_pairs(None, "folders", tmp_path / "left", tmp_path / "right")
    assert [files.name for files in found.splits["train"]] == ["1"]
    assert [files.name for files in found.splits["val"]] == ["2"]


def test_csv(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(
        "\ufeffa,b,split,note\nin/1.png,out/one.png,train,x\n"
        '"in/2, two.png", out/2.png,Val,\nin/3.png,out/3.png,,\n',
        encoding="utf-8",
    )
    found = find_pairs(table, "csv")
    assert [files.name for files in found.splits["train"]] == ["in/1", "in/3"]
    assert found.splits["train"][0].b == tmp_path / "out/one.png"
    assert [files.name for files in found.splits["val"]] == ["in/2, two"]
    assert "no test: testing on val" in found.notes["test"]


def test_test_stands_in_for_val(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "test/2.jpg")
    found = find_pairs(tmp_path, "side_by_side")
    assert found.splits["val"] is found.splits["test"]
    assert "no val: validating on test (1 pairs)" in found.notes["val"]


def test_unmatched_files_are_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path / "trainA", *[f"{index}.png" for index in range(7)])
    touch(tmp_path / "trainB", "0.png", "0.jpg", "9.png")
    found = find_pairs(tmp_path, "folders")
    with pytest.raises(UserError) as error:
        report(found, ["train", "val"])
    message = str(error.value)
    assert len(message.splitlines()) <= 3
    assert "8 files cannot be used" in message
    assert "6 without a file of the same stem in" in message
    assert "trainA/1.png, trainA/2.png, trainA/3.png and 3 more" in message
    assert "with other problems" in message


@pytest.mark.parametrize(
    ("layout", "files", "message"),
    [
        ("side_by_side", ["trian/1.png"], "needs a folder train there; it holds trian"),
        ("side_by_side", ["trainA/1.png", "trainB/1.png"], "looks like data.layout=folders"),
        ("side_by_side", ["train/1.gif"], "no images in train .readable are .png"),
        (
            "folders",
            ["train/1.png"],
            "needs trainA and trainB .or train/A and train/B. there; it holds train",
        ),
        ("folders", ["trainA/1.png"], "trainA is there, trainB is not"),
        ("csv", ["pairs.csv"], "give the CSV file, not its folder; it holds pairs.csv"),
    ],
)
def test_slips(tmp_path: Path, layout: str, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        find_pairs(tmp_path, layout)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "must name the columns a, b and perhaps split; it names x, y"),
        ("", "it names nothing"),
        ("a,b\n", "no pairs"),
        ("a,b\n1.png,\n", "line 2 needs a path in both"),
        ("a,b,split\n1.png,2.png,trian\n", "line 2 has split=trian; choose one of train, val, test"),
        ("a,b,split\n1.png,2.png,val\n", "no pairs with split=train"),
    ],
)
def test_slips_of_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        find_pairs(tmp_path / "pairs.csv", "csv")


def test_missing_folders_suggest_what_exists(tmp_path: Path) -> None:
    touch(tmp_path, "facades/train/1.jpg")
    with pytest.raises(UserError, match=r"data.root=.*facade: no such folder \(did you mean .*facades\?\)"):
        find_pairs(tmp_path / "facade", "side_by_side")
    with pytest.raises(UserError, match="holds: facades"):
        find_pairs(tmp_path / "zzz" / "yyy", "side_by_side")
    with pytest.raises(UserError, match="this is a file"):
        find_pairs(tmp_path / "facades/train/1.jpg", "side_by_side")
    with pytest.raises(UserError, match="no such file"):
        find_pairs(tmp_path / "none.csv", "csv")
    with pytest.raises(UserError, match=r"data\.root is missing"):
        find_pairs(None, "side_by_side")
    with pytest.raises(UserError, match=r"data\.folder_b is missing"):
        find_pairs(None, "folders", folder_a=tmp_path)
    with pytest.raises(UserError, match=r"need data\.layout=folders"):
        find_pairs(None, "csv", folder_a=tmp_path, folder_b=tmp_path)


def test_one_pair_cannot_both_train_and_validate(tmp_path: Path) -> None:
    touch(tmp_path, "train/only.png")
    with pytest.raises(UserError, match="1 pair is too few"):
        find_pairs(tmp_path, "side_by_side")
