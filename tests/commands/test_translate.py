"""i2i-translate from the shell's words to the files: batches, resuming, and everything that goes wrong."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from i2i_lightning.cli.record import Run
from i2i_lightning.commands import translate as command
from i2i_lightning.commands.translate import APP
from i2i_lightning.translation import files
from i2i_lightning.translation.folder import RECORD_NAME
from i2i_lightning.translation.modes import Draws
from i2i_lightning.translation.tiling import plan, seam_steps
from i2i_lightning.translation.translator import Translator
from i2i_lightning.types import ImageFormat
from tests.translation.conftest import picture, write_checkpoint

Shell = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("I2I_DEBUG", raising=False)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run the command; return its exit status and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        status = APP.main(["device=cpu", *words])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run folder with a checkpoint in it: batch norm and dropout, as pix2pix has."""
    path = write_checkpoint(tmp_path / "run/checkpoints/best.ckpt", norm="batch", dropout=True)
    return path.parents[1]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven pictures of three sizes in two folders, two of the sizes padded to the same."""
    folder = tmp_path / "photos"
    sizes = [(24, 32), (24, 31), (24, 32), (40, 40), (24, 32), (40, 40), (22, 30)]
    for index, size in enumerate(sizes):
        path = folder / ("" if index % 2 else "sub") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(*size, seed=index)).save(path)
    return folder


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every pass through the network."""
    seen: list[int] = []
    forward = Translator._forward

    def counting(self: Translator, inputs: Tensor, draws: Draws, statistics: Any = None) -> Tensor:
        seen.append(len(inputs))
        return forward(self, inputs, draws, statistics)

    monkeypatch.setattr(Translator, "_forward", counting)
    return seen


def outputs(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD_NAME
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether pictures are the same but for the rounding of a batch."""
    return one.keys() == other.keys() and all(
        np.abs(one[name].astype(int) - other[name]).max() <= 1 for name in one
    )


# What it does.


def test_a_folder_in_batches_gives_what_files_give_one_by_one(
    shell: Shell, checkpoint: Path, photos: Path, forwards: list[int], tmp_path: Path
) -> None:
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out", "seed=3")
    assert status == 0
    assert text.startswith("7 translated: out, ")
    assert "images/s" in text
    assert sorted(forwards) == [2, 5]  # three sizes, but two of them are padded to the same
    made = outputs(tmp_path / "out")
    assert sorted(made) == ["1.png", "3.png", "5.png", "sub/0.png", "sub/2.png", "sub/4.png", "sub/6.png"]
    translator = Translator.load(checkpoint, device="cpu", seed=3)
    for name, pixels in made.items():
        alone = translator(np.array(Image.open(photos / name)), key=name.removesuffix(".png"))
        assert np.abs(pixels.astype(int) - alone).max() <= 1
        assert pixels.std() > 5
    forwards.clear()
    shell(f"checkpoint={checkpoint}", f"input={photos}", "output=single", "seed=3", "batch_size=1")
    assert forwards == [1] * 7
    assert same(made, outputs(tmp_path / "single"))
    shell(f"checkpoint={checkpoint}", f"input={photos}", "output=other", "seed=4")
    assert not same(made, outputs(tmp_path / "other"))


def test_one_file_in_one_file_out(shell: Shell, checkpoint: Path, photos: Path) -> None:
    words = f"checkpoint={checkpoint}", f"input={photos}/1.png", "output=new/x.png"
    assert shell(*words)[0] == 0
    assert os.listdir("new") == ["x.png"]  # no record beside a single file
    status, text = shell(*words)
    assert status == 1
    assert text == "i2i-translate: output=new/x.png: is there already; overwrite=true replaces it\n"
    assert shell(*words, "overwrite=true")[0] == 0


def test_a_pattern(shell: Shell, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    assert shell(f"checkpoint={checkpoint}", f"input={photos}/**/[0-3].png", "output=out")[0] == 0
    assert sorted(outputs(tmp_path / "out")) == ["1.png", "3.png", "sub/0.png", "sub/2.png"]


def test_large_images_are_cut_and_small_ones_are_not(
    shell: Shell, checkpoint: Path, photos: Path, forwards: list[int]
) -> None:
    Image.fromarray(picture(200, 150)).save(photos / "large.png")
    assert shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out", "tile_px=64")[0] == 0
    tiles = plan(200, 152, 64, 4).num_tiles
    assert len(forwards) == 2 + 1 + tiles  # a batch for each of two sizes, the statistics, the tiles
    assert outputs(Path("out"))["large.png"].shape == (200, 150, 3)


def test_sixteen_bits_label_maps_and_many_channels(shell: Shell, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", (picture(20, 30, 5).astype(np.uint16) * 257))
    for name, output, suffix, dtype, shape in (
        ("deep", ImageFormat("image", 3, "uint16"), "png", np.uint16, (20, 30, 3)),
        ("labels", ImageFormat("labels", 7), "png", np.uint8, (20, 30)),
        ("many", ImageFormat("image", 6), "npy", np.uint8, (20, 30, 6)),
    ):
        path = write_checkpoint(tmp_path / f"{name}.ckpt", input=ImageFormat("image", 5), output=output)
        assert shell(f"checkpoint={path}", "input=a.npy", f"output={name}")[0] == 0
        made = tmp_path / name / f"a.{suffix}"
        kind, channels = output.kind, output.channels
        read = files.decode(made, files.SideFormat("in", kind, channels))
        assert read.dtype == dtype
        assert read.shape == shape
        translator = Translator.load(path, device="cpu")
        expected = translator.pictures(
            [torch.from_numpy(np.load(tmp_path / "a.npy")).permute(2, 0, 1)], ["a"]
        )[0].numpy()
        expected = expected if expected.ndim == 2 else expected.transpose(1, 2, 0)
        np.testing.assert_array_equal(read, expected)


def test_colour_from_lightness(shell: Shell, photos: Path, tmp_path: Path) -> None:
    formats = {"input": ImageFormat("lightness", 1), "output": ImageFormat("chroma", 2)}
    path = write_checkpoint(tmp_path / "lab.ckpt", init_gain=0.005, **formats)
    Image.open(photos / "1.png").convert("L").save(photos / "grey.png")
    assert shell(f"checkpoint={path}", f"input={photos}", "output=out")[0] == 0
    made = outputs(tmp_path / "out")
    assert made["grey.png"].shape == (24, 31, 3)
    grey = np.asarray(Image.open(photos / "grey.png")).astype(float)
    # The lightness is the input's; this generator adds little colour.
    shown = np.asarray(Image.fromarray(made["grey.png"]).convert("L")).astype(float)
    assert np.abs(shown - grey).mean() < 2
    assert (made["grey.png"][:, :, 0] != made["grey.png"][:, :, 2]).any()


def test_pairs_side_by_side_and_sizes(shell: Shell, checkpoint: Path, facades: Path, tmp_path: Path) -> None:
    files = sorted((facades / "test").iterdir())[:3]
    for path in files:
        (tmp_path / "pairs" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "pairs" / path.name).write_bytes(path.read_bytes())
    words = f"checkpoint={checkpoint}", "input=pairs", "output=out", "side=right", "resize_px=[64,48]"
    assert shell(*words)[0] == 0
    made = outputs(tmp_path / "out")
    assert len(made) == 3
    pair = Image.open(files[0]).convert("RGB")
    half = pair.crop((pair.width // 2, 0, pair.width, pair.height)).resize((48, 64), Image.Resampling.BICUBIC)
    alone = Translator.load(checkpoint, device="cpu")(half, key=files[0].stem)
    assert np.abs(made[f"{files[0].stem}.png"].astype(int) - np.asarray(alone)).max() <= 1


def test_files_that_are_no_images_are_named(shell: Shell, checkpoint: Path, photos: Path) -> None:
    for name in ("a.txt", "b.txt", "sub/c.pdf", "d.json"):
        (photos / name).write_text("x")
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out")
    assert status == 0
    assert "\n4 not images by their suffix: a.txt, b.txt, d.json and 1 more\n" in text


def test_averages_are_taken_where_there_are_some(shell: Shell, photos: Path, tmp_path: Path) -> None:
    path, other = (write_checkpoint(tmp_path / f"{i}.ckpt", weights_seed=i) for i in (0, 1))
    saved, average = torch.load(path), torch.load(other)["state_dict"]
    saved["state_dict"] |= {f"averages.{key}": value for key, value in average.items()}
    torch.save(saved, path)
    for checkpoint, words in ((path, []), (other, []), (path, ["averaged=false"])):
        name = f"output=out{checkpoint.stem}{len(words)}"
        assert shell(f"checkpoint={checkpoint}", f"input={photos}", name, *words)[0] == 0
    assert same(outputs(Path("out00")), outputs(Path("out10")))
    assert not same(outputs(Path("out00")), outputs(Path("out01")))


# Resuming.


def test_what_is_there_is_skipped(shell: Shell, checkpoint: Path, photos: Path, forwards: list[int]) -> None:
    words = f"checkpoint={checkpoint}", f"input={photos}", "output=out"
    shell(*words)
    made = outputs(Path("out"))
    times = {name: (Path("out") / name).stat().st_mtime_ns for name in made}
    (Path("out") / "sub/2.png").unlink()
    (Path("out") / "3.png").unlink()
    Path("out/sub/.2.png.99999.tmp").write_bytes(b"half")
    forwards.clear()
    status, text = shell(*words)
    assert status == 0
    assert text.startswith("2 translated, 5 already there: out, ")
    assert sum(forwards) == 2
    assert same(outputs(Path("out")), made)  # neither order nor batch change the noise; no leavings either
    for name in set(made) - {"sub/2.png", "3.png"}:
        assert (Path("out") / name).stat().st_mtime_ns == times[name]
    forwards.clear()
    status, text = shell(*words)
    assert (status, text) == (0, "0 translated, 7 already there: out\n")
    assert not forwards


def test_ctrl_c_says_what_is_done_and_the_rest_follows(
    shell: Shell, checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"checkpoint={checkpoint}", f"input={photos}", "output=out", "batch_size=2"
    pictures = Translator.pictures
    calls: list[int] = []

    def interrupted(self: Translator, *arguments: Any, **options: Any) -> list[Tensor]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pictures(self, *arguments, **options)

    monkeypatch.setattr(Translator, "pictures", interrupted)
    status, text = shell(*words)
    assert status == 130
    done = outputs(Path("out"))
    assert 0 < len(done) == 4
    assert text.endswith("i2i-translate: stopped. 4 of 7 are done; the same command goes on\n")
    assert not list(Path("out").rglob("*.tmp"))
    monkeypatch.undo()
    monkeypatch.chdir(photos.parent)
    assert shell(*words)[1].startswith("3 translated, 4 already there: out, ")
    shell(f"checkpoint={checkpoint}", f"input={photos}", "output=whole")
    assert same(outputs(Path("out")), outputs(Path("whole")))


def test_other_settings_do_not_mix(shell: Shell, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    words = [f"input={photos}", "output=out"]
    shell(f"checkpoint={checkpoint}", *words)
    before = outputs(Path("out"))
    status, text = shell(f"checkpoint={checkpoint}", *words, "seed=1")
    assert status == 1
    assert text == (
        "i2i-translate: output=out: holds images made with seed=0, now 1: overwrite=true, or another folder\n"
    )
    other = write_checkpoint(tmp_path / "other.ckpt", weights_seed=1, norm="batch", dropout=True)
    status, text = shell(f"checkpoint={other}", *words)
    assert status == 1
    assert "holds images made with another checkpoint (run/checkpoints/best.ckpt)" in text
    assert same(before, outputs(Path("out")))
    moved = other.with_name("moved.ckpt")
    moved.write_bytes((checkpoint / "checkpoints/best.ckpt").read_bytes())
    status, text = shell(f"checkpoint={moved}", *words)
    assert (status, text) == (0, "0 translated, 7 already there: out\n")  # the weights count, not their name
    status, text = shell(f"checkpoint={other}", *words, "overwrite=true")
    assert text.startswith("7 translated: out, ")
    assert not same(before, outputs(Path("out")))


def test_an_interrupted_overwriting_goes_on_where_it_was(
    shell: Shell, checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else old files that were not replaced yet would pass for new ones."""
    words = [f"checkpoint={checkpoint}", f"input={photos}", "output=out", "batch_size=1"]
    shell(*words)
    pictures = Translator.pictures
    calls: list[int] = []

    def interrupted(self: Translator, *arguments: Any, **options: Any) -> list[Tensor]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pictures(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Translator, "pictures", interrupted)
        assert shell(*words, "seed=1", "overwrite=true")[0] == 130
    assert shell(*words, "seed=1")[1].startswith("4 translated, 3 already there")
    shell(*words[:2], "output=fresh", "seed=1")
    assert same(outputs(Path("out")), outputs(Path("fresh")))


def test_files_of_unknown_origin_are_not_replaced(shell: Shell, checkpoint: Path, photos: Path) -> None:
    mine = Path("out/sub/2.png")
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out")
    assert status == 1
    assert "output=out: a file of unknown origin is there already (sub/2.png)" in text
    assert mine.read_text() == "precious"
    assert shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out", "overwrite=true")[0] == 0


# What goes wrong.


def test_bad_files_among_good_ones(shell: Shell, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("<html>not found</html>" * 10)
    whole = (photos / "3.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(picture(20, 20, 1)[:, :, 0]).save(photos / "grey.png")
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out")
    assert status == 1
    assert text.startswith("7 translated, 4 failed: out, ")
    for name in ("empty.png", "text.jpg", "cut.png", "grey.png"):
        assert sum(name in line for line in text.splitlines()) == 1
    told = "i2i-translate: 4 of 11 images failed, for the reasons above; the others are done"
    assert text.rstrip().endswith(told)
    assert len(text.splitlines()) == 6
    assert len(outputs(Path("out"))) == 7
    # Once they are mended, the same command does just them.
    for name in ("empty.png", "text.jpg", "cut.png"):
        (photos / name).unlink()
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out")
    assert text.startswith("0 translated, 7 already there, 1 failed: out\n")
    assert "1 grey (1 channel) where the checkpoint takes RGB images: grey.png" in text
    assert "(convert=match converts them)" in text
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=new", "convert=match")
    assert (status, text.splitlines()[0][:12]) == (0, "8 translated")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_and_a_folder_that_is_closed_midway(
    shell: Shell, checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    words = f"checkpoint={checkpoint}", f"input={photos}", "output=out", "batch_size=1"
    write = Path.write_bytes
    written: list[Path] = []

    def full(path: Path, data: bytes) -> int:
        if len(written) >= 3:
            write(path, data[: len(data) // 2])
            raise OSError(number, os.strerror(number), str(path))
        written.append(path)
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        status, text = shell(*words)
    assert status == 1
    going_on = "3 of 7 are done; once that is mended, the same command goes on"
    assert f": {os.strerror(number)}\n{going_on}\n" in text
    assert len(text.splitlines()) == 2
    assert len(outputs(Path("out"))) == 3
    assert shell(*words)[1].startswith("4 translated, 3 already there")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(shell: Shell, checkpoint: Path, photos: Path) -> None:
    Path("out").mkdir(mode=0o500)
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=out")
    assert (status, text) == (1, "i2i-translate: output=out: cannot be written (Permission denied)\n")


def test_a_folder_that_cannot_be_made(shell: Shell, checkpoint: Path, photos: Path) -> None:
    Path("file").write_text("")
    status, text = shell(f"checkpoint={checkpoint}", f"input={photos}", "output=file/out")
    assert (status, text) == (1, "i2i-translate: output=file/out: cannot be written (Not a directory)\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=none"], "input=none: no such folder"),
        (["input=photos", "side=top"], "side=top: choose one of left, right"),
        (["input=photos", "half=fp8"], "half=fp8: choose one of bf16, fp16"),
        (["input=photos", "convert=all"], "convert=all: choose one of none, match"),
        (["input=photos", "batch_size=0"], "batch_size=0: must be at least 1"),
        (["input=photos", "resize_px=-3"], "resize_px=-3: give one side in pixels"),
        (["input=photos", "device=tpu9"], "device=tpu9: choose one of"),
        (["input=photos", "direction=ba"], "ba"),
        (["input=photos", "checkpoint=none.ckpt"], "none.ckpt: no such"),
        (["input=photos", "format=gif"], "format=gif: choose one of"),
        (["input=photos", "sed=1"], "sed"),
    ],
)
def test_slips_are_told_in_a_line_or_two(
    shell: Shell, checkpoint: Path, photos: Path, words: list[str], message: str
) -> None:
    status, text = shell(f"checkpoint={checkpoint}", "output=out", *words)
    assert status == 1
    assert message in text
    assert text.startswith("i2i-translate: ")
    assert len(text.splitlines()) <= 3
    assert not Path("out").exists()


def test_missing_words(shell: Shell) -> None:
    status, text = shell("input=photos", "output=out")
    assert status == 1
    assert "checkpoint" in text


# At size.


@pytest.mark.slow
def test_a_thousand_small_files_go_in_batches(
    shell: Shell, checkpoint: Path, tmp_path: Path, forwards: list[int]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(1000):
        Image.fromarray(picture(64, 64 if index % 2 else 60, seed=index)).save(folder / f"{index:04}.jpg")
    whole = (folder / "0501.jpg").read_bytes()
    (folder / "0500.jpg").write_bytes(whole[: len(whole) - 200])
    status, text = shell(f"checkpoint={checkpoint}", f"input={folder}", "output=out")
    assert status == 1
    assert text.startswith("999 translated, 1 failed: out, ")
    assert "1 truncated or damaged: 0500.jpg" in text
    assert len(outputs(Path("out"))) == 999
    assert sum(forwards) == 999
    assert len(forwards) <= 1000 / 64 + 3


@pytest.mark.slow
def test_a_large_image_in_bounded_memory_without_seams(tmp_path: Path) -> None:
    """4000 x 3000 px; in one piece several maps of 366 MiB each would live at a time."""
    from subprocess import run

    options = {"base_channels": 8, "num_blocks": 2, "norm": "batch", "dropout": True}
    path = write_checkpoint(tmp_path / "large.ckpt", **options)
    Image.fromarray(picture(3000, 4000)).save("large.png", compress_level=1)
    # VmHWM is this program's own peak; getrusage would begin with the peak of whoever started it.
    code = (
        "import sys; from i2i_lightning.commands.translate import APP;"
        "import torch, tqdm, PIL.Image, i2i_lightning.translation.folder;"
        "lines = lambda: open('/proc/self/status').read().splitlines();"
        "kib = lambda name: next(int(line.split()[1]) for line in lines() if line.startswith(name));"
        "before = kib('VmRSS'); status = APP.main(sys.argv[1:]);"
        "print('MiB', (kib('VmHWM') - before) / 1024); sys.exit(status)"
    )
    words = [f"checkpoint={path}", "input=large.png", "output=out", "device=cpu", "tile_px=512"]
    checkout = Path(command.__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, check=True
    )
    taken_mib = float(done.stdout.rpartition("MiB")[2])
    image_mib = 4000 * 3000 * 3 / 2**20
    # The image before, after, and as a file; a strip of tiles; the network.
    assert taken_mib < 15 * image_mib, done.stdout
    made = torch.from_numpy(np.array(Image.open("out/large.png"))).permute(2, 0, 1)
    assert made.shape == (3, 3000, 4000)
    steps = seam_steps(made, plan(3000, 4000, 512, 4))
    assert steps.border <= steps.inside


def test_the_task_is_plain_python(checkpoint: Path, photos: Path) -> None:
    from omegaconf import OmegaConf

    from i2i_lightning.config import TranslateConfig

    config = OmegaConf.structured(
        TranslateConfig(checkpoint=str(checkpoint), input=str(photos), output="out", device="cpu")
    )
    command.translate(Run(config, Path("."), "i2i-translate"))
    assert len(outputs(Path("out"))) == 7
