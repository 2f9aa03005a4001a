"""i2i-edit from the shell's words to pictures, latents and records, and everything that goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from i2i_lightning.checkpoints.directions import load_directions
from i2i_lightning.checkpoints.latents import Latent, load_latent, save_latent
from i2i_lightning.checkpoints.style.load import LoadedStyle
from i2i_lightning.cli import help as help_page
from i2i_lightning.cli.folders import conf_dir
from i2i_lightning.commands.edit import APP
from i2i_lightning.data.alignment import crop, face_quad
from i2i_lightning.editing.mixing import mix
from i2i_lightning.editing.transfer import corners, expression_transfer, morph, style_transfer
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.sampling.pictures import to_picture
from i2i_lightning.sampling.sampler import Sampler

Shell = Callable[..., tuple[int, str]]
SIZE = 16
QUICK = (
    "effort.latent_steps=3",
    "effort.noise_steps=3",
    "effort.blur_px=0.5",
    "loss.perceptual.name=substitute",
)


def tiny(channels: int = 3, seed: int = 0, label_dim: int = 0) -> StyleGenerator:
    torch.manual_seed(seed)
    generator = StyleGAN2Generator(
        SIZE, channels, 8, 8, label_dim, mapping_layers=2, channel_base=128, channel_max=8
    )
    for layer in generator.synthesis.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.3)
    generator.mapping.w_avg.normal_()
    return generator.eval()


GENERATORS = {
    "tiny": lambda: tiny(),
    "other": lambda: tiny(seed=1),
    "grey": lambda: tiny(channels=1),
    "classes": lambda: tiny(label_dim=2),
    "faces": lambda: tiny(),
}
PROVENANCE = {"faces": {"data": "ToyFaces photos"}, "other": {"data": "cats"}}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("I2I_DEBUG", raising=False)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run the command on a small generator; return its exit status and what it printed."""

    def opened(path: str) -> Any:
        loaded = LoadedStyle(GENERATORS[path](), "", provenance=PROVENANCE.get(path))
        return SimpleNamespace(generator=lambda averaged=True: (loaded.network, loaded))

    monkeypatch.setattr("i2i_lightning.checkpoints.style.load.open_style", opened)

    def run(*words: str) -> tuple[int, str]:
        named = [] if any(word.startswith("generator=") for word in words) else ["generator=tiny"]
        status = APP.main(["device=cpu", "video.frames=3", *named, *words])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def drawn(w_plus: torch.Tensor, generator: StyleGenerator | None = None) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(to_picture((generator or tiny()).synthesis(w_plus[None])[0]))


def of_seeds(*seeds: int) -> torch.Tensor:
    return Sampler(tiny()).points(seeds).w_plus


def a_latent(name: str, seed: int = 0, generator: StyleGenerator | None = None, **fields: Any) -> Path:
    """Write a latent file as i2i-invert does, and return its path."""
    generator = generator or tiny()
    w_plus = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)))[0].detach()
    path = Path("run/latents", f"{name}.safetensors")
    save_latent(path, Latent(w_plus.contiguous(), generator.fingerprint(), name, generator="tiny", **fields))
    return path


def noise_of(generator: StyleGenerator, seed: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 1, *shape, generator=rng) for shape in generator.noise_shapes]


def a_picture(name: str, size: tuple[int, int] = (SIZE, SIZE), mode: str = "RGB", seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    height, width = size
    shape = (height, width) if mode == "L" else (height, width, 3)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(name)
    return name


def a_mask(name: str, size: int = SIZE, box: tuple[int, int, int, int] = (4, 4, 10, 10)) -> str:
    mask = np.zeros((size, size), np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 255
    Image.fromarray(mask).save(name)
    return name


# Latents.


def test_nothing_said_morphs_between_two_seeds(shell: Shell) -> None:
    status, text = shell()
    assert status == 0, text
    (folder,) = Path("outputs/edit").iterdir()
    assert text.splitlines() == [
        f"{folder}: tiny, 16 px",
        "  morph.png, 8 x 1",
        "  images/, 8 PNG files",
        "  latents/, 8 safetensors files",
        "  morph.webp, 6 images, 0.2 s",
    ]
    frames = morph(*of_seeds(0, 1), 8)
    for index in (0, 3, 7):
        assert (pixels(folder / f"images/morph0_{index:03d}.png") == drawn(frames[index])).all()
        latent = load_latent(folder / f"latents/morph0_{index:03d}.safetensors")
        torch.testing.assert_close(latent.w_plus, frames[index])
        assert latent.fingerprint == tiny().fingerprint()
    video: Any = Image.open(folder / "morph.webp")
    assert video.n_frames == 6  # there and back, neither end twice
    record = json.loads((folder / "result.json").read_text())
    assert record["settings"]["operation"]["pictures"] == 8
    assert record["latents"] == ["seed 0", "seed 1"]
    assert record["fingerprint"] == tiny().fingerprint()


def test_a_run_of_inversions_is_gone_through_in_order(shell: Shell) -> None:
    generator = tiny()
    noises = [noise_of(generator, seed) for seed in range(2)]
    for index, name in enumerate("ab"):
        a_latent(name, index, noise=noises[index])
    a_latent("c", 2)
    status, text = shell("latents=run", "operation.pictures=3", "output=out", "video.frames=0")
    assert status == 0, text
    assert "morph.png, 3 x 2" in text
    assert not list(Path("out").glob("*.webp"))
    # Ends are the very pictures of their files, with their noise; half way, the noise is half way, too.
    for name, made in {"a": "morph0_000", "b": "morph0_002", "c": "morph1_002"}.items():
        picture = load_latent(f"run/latents/{name}.safetensors").render(generator)[0]
        assert (pixels(f"out/images/{made}.png") == np.asarray(to_picture(picture.detach()))).all()
    middle = load_latent("out/latents/morph0_001.safetensors").noise
    assert middle is not None
    for half, one, other in zip(middle, *noises, strict=True):
        torch.testing.assert_close(half, (one + other) / 2)
    stored = load_latent("out/latents/morph1_001.safetensors").noise
    assert stored is not None
    for half, one, own in zip(stored, noises[1], generator.noise_maps(), strict=True):
        torch.testing.assert_close(half, (one + own) / 2)


def test_tuned_weights_are_blended(shell: Shell) -> None:
    key = "synthesis.b16.torgb.bias"
    a_latent("a", 0, tuned={key: torch.full((3,), 0.5)})
    a_latent("b", 1)
    assert shell("latents=run", "operation.pictures=3", "output=out", "video.frames=0")[0] == 0
    middle = load_latent("out/latents/morph0_001.safetensors").tuned
    assert middle is not None
    torch.testing.assert_close(middle[key], (tiny().state_dict()[key] + 0.5) / 2)
    assert load_latent("out/latents/morph0_002.safetensors").tuned is None


def test_four_corners(shell: Shell) -> None:
    assert shell("operation=corners", "operation.side=3", "seeds=0-3", "output=out")[0] == 0
    grid = corners(of_seeds(0, 1, 2, 3), 3)
    for row, column in ((0, 0), (1, 2), (2, 2)):
        shown = pixels(f"out/images/corners_{row}_{column}.png").astype(int)
        assert np.abs(shown - drawn(grid[3 * row + column])).max() <= 1
    status, text = shell("operation=corners", "seeds=0-2")
    assert status == 1
    assert text == (
        "i2i-edit: latents: 3 given; this edit takes 4: upper left, upper right, lower left, lower right\n"
    )
    assert shell("operation=corners", "operation.side=1")[1].startswith(
        "i2i-edit: operation.side=1: give at least 2"
    )


def test_expressions(shell: Shell) -> None:
    words = ["operation=expression_transfer", "operation.threshold=0.1", "seeds=5,6,7", "output=out"]
    status, text = shell(*words, "operation.strengths=0,0.5,-1")
    assert status == 0, text
    w1, w2, w3 = of_seeds(5, 6, 7)
    strip = expression_transfer(w1, w2, w3, torch.tensor([0, 0.5, -1]), 0.1)
    for index in range(3):
        assert (pixels(f"out/images/expression_{index:03d}.png") == drawn(strip[index])).all()
    assert load_latent("out/latents/expression_001.safetensors").settings["strength"] == 0.5
    assert Path("out/expression.webp").is_file()
    status, text = shell(*words[:1], "operation.threshold=99")
    assert status == 1
    assert text.startswith("i2i-edit: threshold=99: no row of the difference is that long")


def test_an_expression_of_two_photos(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    a_picture("neutral.png", (16, 16))
    changed = pixels("neutral.png").copy()
    changed[9:12, 5:11] = 255 - changed[9:12, 5:11]
    Image.fromarray(changed).save("expressive.png")
    photos = ["operation.neutral=neutral.png", "operation.expressive=expressive.png", *QUICK]
    words = ["operation=expression_transfer", "operation.threshold=0", "operation.strengths=0,1", *photos]
    status, text = shell(*words, "operation.rows=2-4", "seeds=5", "output=out")
    assert status == 0, text
    first, second = (load_latent(f"out/latents/expression_00{index}.safetensors").w_plus for index in (0, 1))
    assert torch.equal(first, of_seeds(5)[0])
    # What was searched for, and with what, is in the record and in the latents.
    notes = json.loads(Path("out/result.json").read_text())["notes"]
    assert len(notes) == 1
    assert "substitute" in notes[0]
    settings = load_latent("out/latents/expression_001.safetensors").settings
    assert (settings["neutral"], settings["expressive"]) == ("neutral", "expressive")
    assert settings["notes"] == notes
    assert (settings["threshold"], settings["effort"]["latent_steps"]) == (0, 3)
    w2, w3 = (settings["searches"][name] for name in ("w2", "w3"))
    assert (w2["start"]["kind"], w3["start"]["kind"]) == ("mean", "given")
    assert (w2["loss"]["lambda_prior"], w3["loss"]["lambda_anchor"], w3["seed"]) == (1.0, 10.0, 0)
    moved = (second - first).abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [2, 3, 4]

    # What is wrong is told before the first search.
    def searched(*_: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("i2i_lightning.editing.local.embed", searched)
        assert "operation.rows=9: 9 is too large" in shell(*words, "operation.rows=9", "seeds=5")[1]
        assert "operation.box=1: give left,top" in shell(*words, "operation.box=1", "seeds=5")[1]
    # The neutral photo's latent may be given, and is not searched for then.
    assert shell(*words, "seeds=5,6", "output=given")[0] == 0
    assert list(load_latent("given/latents/expression_000.safetensors").settings["searches"]) == ["w3"]
    a_latent("face", 0), a_latent("tuned", 1, tuned={"synthesis.b16.torgb.bias": torch.full((3,), 0.5)})
    status, text = shell(*words, "latents=run")
    assert (status, text.count("\n")) == (1, 1)
    assert text.startswith("i2i-edit: latents: tuned: expression_transfer searches from the neutral photo's")
    assert shell(*words[:3], *photos[:1], "seeds=5")[1].startswith("i2i-edit: operation.expressive: missing")
    assert "this edit takes 1 to 2" in shell(*words, "seeds=5,6,7")[1]


def test_an_expression_in_a_box_alone(shell: Shell) -> None:
    words = ["operation=expression_transfer", "operation.threshold=0.1", "seeds=5,6,7", "output=out"]
    status, text = shell(*words, "operation.strengths=0,2", "operation.box=0,0,5,16", "effort.blur_px=0.5")
    assert status == 0, text
    assert "expression.png, 4 x 1" in text
    before, after = (pixels(f"out/images/expression_00{index}.png").astype(int) for index in range(2))
    assert np.abs(before - drawn(of_seeds(5)[0])).max() <= 1
    changed = np.abs(after - before).max((0, 2))
    assert changed[:5].min() > 1
    assert changed[13:].max() <= 1  # the layers that follow reach some pixels further
    assert not Path("out/latents").exists()
    assert "operation.box=1: give left" in shell(*words[:-1], "operation.box=1")[1]


def test_styles(shell: Shell) -> None:
    assert shell("operation=style_transfer", "operation.content_rows=2", "seeds=3,4", "output=out")[0] == 0
    w = of_seeds(3, 4)
    wanted = style_transfer(w[:1], w[1:], 2)[0]
    assert (pixels("out/images/style_0_1.png") == drawn(wanted)).all()
    assert (pixels("out/images/style_1_1.png") == drawn(w[1])).all()
    assert shell("operation=style_transfer", "operation.rows=1,3-5", "seeds=3,4", "output=rows")[0] == 0
    assert (pixels("rows/images/style_0_1.png") == drawn(mix(w[:1], w[1:], [1, 3, 4, 5])[0])).all()
    both = shell("operation=style_transfer", "operation.content_rows=2", "operation.rows=1")[1]
    assert both.startswith("i2i-edit: operation.content_rows, operation.rows: both given")
    status, text = shell("operation=style_transfer", "operation.content_rows=7")
    assert status == 1
    assert "content_rows=7: this generator has 6 rows" in text


# Directions.


@pytest.mark.parametrize(
    ("find", "name"),
    [
        (["operation.find=components", "operation.samples=100"], "pca_1"),
        (["operation.find=factorisation"], "sefa_1"),
        (["operation.find=factorisation", "operation.attribute=the nose"], "the nose"),
    ],
)
def test_directions_are_found_kept_and_taken_up_again(shell: Shell, find: list[str], name: str) -> None:
    words = ["operation=direction", "operation.strengths=-2,0,2", "seeds=1"]
    status, text = shell(*words, *find, "operation.component=1", "operation.rows=0-1", "output=out")
    assert status == 0, text
    file = Path(f"out/{name.replace(' ', '_')}.safetensors")
    (fields,) = load_directions(file)
    assert fields["name"] == name
    assert fields["rows"] == (0, 1)
    assert fields["fingerprint"] == tiny().fingerprint()
    step = 2 * fields["scale"] * fields["vector"]
    moved = of_seeds(1)[0].clone()
    moved[:2] += step
    assert (pixels("out/images/direction0_002.png") == drawn(moved)).all()
    assert shell(*words, f"operation.file={file}", "output=again")[0] == 0
    assert (pixels("again/images/direction0_002.png") == drawn(moved)).all()
    status, text = shell(*words, f"operation.file={file}", "generator=other")
    assert status == 1
    assert "belongs to another generator" in text
    assert text.count("\n") == 1


def test_published_directions_need_a_word_of_whose_they_are(shell: Shell) -> None:
    row = torch.randn(8, generator=torch.Generator().manual_seed(0))
    torch.save(row.expand(18, 8).clone(), "smile.pt")
    words = ["operation=direction", "operation.file=smile.pt", "operation.strengths=1", "seeds=0"]
    status, text = shell(*words)
    assert status == 1
    assert text.startswith("i2i-edit: operation.file=smile.pt: does not say which generator it belongs to")
    assert text.rstrip().endswith("say operation.of=tiny")
    status, text = shell(*words, "operation.of=other")
    assert status == 1
    assert "smile: belongs to another generator (the mean latents' cosine is" in text
    assert shell(*words, "operation.of=tiny", "output=out")[0] == 0
    assert (pixels("out/images/direction0_000.png") == drawn(of_seeds(0)[0] + row)).all()
    (fields,) = load_directions("out/smile.safetensors")
    assert fields["fingerprint"] == tiny().fingerprint()


def test_principal_components_of_others_are_guarded_by_their_mean(shell: Shell) -> None:
    components = torch.eye(8)[:2, None]
    mean = tiny().w_avg.clone()[None]
    torch.save({"comp": components, "mean": mean, "std": torch.tensor([2.0, 1.0])}, "pca.pt")
    words = ["operation=direction", "operation.file=pca.pt", "operation.strengths=1", "seeds=0"]
    assert shell(*words, "output=out", "operation.component=1")[0] == 0
    moved = of_seeds(0)[0] + torch.eye(8)[1]
    assert (pixels("out/images/direction0_000.png") == drawn(moved)).all()
    assert (
        "operation.component=2: pca.pt holds 2, counted from 0" in shell(*words, "operation.component=2")[1]
    )
    torch.save({"comp": components, "mean": -mean, "std": torch.tensor([2.0, 1.0])}, "pca.pt")
    assert "belongs to another generator (the mean latents' cosine is -1.00" in shell(*words)[1]


def test_directions_of_labelled_latents(shell: Shell) -> None:
    w = of_seeds(*range(40))
    hidden = torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(3)), dim=0)
    scores = w[:, 0] @ hidden
    for index in range(42):
        latent = Latent(w[index % 40], tiny().fingerprint(), f"{index:02d}")
        save_latent(f"all/{index:02d}.safetensors", latent)
    lines = [f"{index:02d},{float(scores[index])}" for index in range(40)]
    Path("tilt.csv").write_text("\n".join(["name,value", *lines, "nobody,1"]))
    words = ["operation=direction", "operation.labels=tilt.csv", "operation.labelled=all", "seeds=0"]
    status, text = shell(*words, "operation.strengths=1", "output=out")
    assert status == 0, text
    assert "note: 1 of 41 labels are of latents that are not given" in text
    unused = "2 of 42 latents have no label, and are left out of the search"
    assert f"  note: {unused}\n" in text
    assert unused in json.loads(Path("out/result.json").read_text())["notes"]
    (fields,) = load_directions("out/tilt.safetensors")
    along = w[:, 0] @ fields["vector"][0]
    assert float(torch.corrcoef(torch.stack([along, scores]))[0, 1]) > 0.95
    Path("tilt.csv").write_text("name,value\n00,high\n")
    assert "tilt.csv, line 2: 'high' is no number" in shell(*words)[1]
    Path("tilt.csv").write_text("who;what\n")
    assert "its first line must name the columns name and value" in shell(*words)[1]

    kept = ["operation=direction", "operation.file=out/tilt.safetensors", "seeds=0", "operation.strengths=1"]
    torch.save(torch.eye(8)[0], "first.pt")
    assert shell(*kept, "operation.orthogonal_to=[first.pt]", "operation.of=tiny", "output=ortho")[0] == 0
    (left,) = load_directions("ortho/tilt.safetensors")
    assert abs(float(left["vector"][0, 0])) < 1e-6


def test_directions_of_what_the_judge_reads(shell: Shell) -> None:
    words = ["operation=direction", "operation.find=faces", "operation.samples=20", "seeds=0"]
    assert shell(*words, "operation.attribute=smile", "operation.strengths=1", "output=out")[0] == 0
    assert load_directions("out/smile.safetensors")[0]["source"].startswith(
        "smile as the judge reads it off 20"
    )
    text = shell(*words, "operation.attribute=grin")[1]
    assert text.startswith("i2i-edit: operation.attribute=grin: give one of yaw, pitch, roll, ")
    says, smile = "the judge reads toy faces; this generator is not known to draw them", [*words, *SMILE]
    assert f"  note: {says}\n" in shell(*smile, "generator=other", "output=cats")[1]
    assert says in json.loads(Path("cats/result.json").read_text())["notes"]
    status, text = shell(*smile, "generator=faces", "output=faces")
    assert (status, says in text) == (0, False)
    assert "reads RGB toy faces" in shell(*words, "generator=grey", "operation.attribute=smile")[1]


# Parts of pictures.


def test_inpainting_leaves_all_its_steps(shell: Shell) -> None:
    words = [f"operation.image={a_picture('a photo, of me.png')}", f"operation.hole={a_mask('hole.png')}"]
    status, text = shell("operation=inpaint", *words, "output=out", *QUICK)
    assert status == 0, text
    steps = sorted(path.name for path in Path("out/steps").iterdir())
    assert steps == ["0_image.png", "1_hole.png", "2_latent.png"]
    assert (pixels("out/steps/1_hole.png") == pixels("hole.png")).all()
    seen = pixels("hole.png") == 0
    assert (pixels("out/steps/0_image.png")[seen] == pixels("a photo, of me.png")[seen]).all()
    latent = load_latent("out/result.safetensors")
    assert (pixels("out/result.png") == np.asarray(to_picture(latent.render(tiny())[0].detach()))).all()
    record = json.loads(Path("out/result.json").read_text())
    error = (pixels("out/result.png").astype(float) - pixels("a photo, of me.png"))[seen] / 127.5
    assert record["figures"]["rms_outside"] == pytest.approx(float((error**2).mean() ** 0.5), abs=0.01)
    assert any("substitute" in note for note in record["notes"])
    assert latent.settings["notes"] == record["notes"]
    searches = latent.settings["searches"]
    assert list(searches) == ["latent", "noise"]
    assert (searches["latent"]["loss"]["lambda_mse"], searches["latent"]["seed"]) == (100.0, 0)
    assert Path("out/strip.png").is_file()


@pytest.mark.parametrize(
    ("operation", "keys", "steps"),
    [
        ("crossover", ("inside", "around", "mask"), 5),
        ("local_edit", ("photo", "scribbled", "mask"), 4),
        ("local_edit", ("photo", "scribbled"), 4),
        ("local_style_transfer", ("content", "style", "mask"), 4),
    ],
)
def test_other_edits_in_masks(shell: Shell, operation: str, keys: tuple[str, ...], steps: int) -> None:
    files = [a_picture("one.png"), a_picture("two.png", seed=1), a_mask("mask.png")]
    words = [f"operation.{key}={file}" for key, file in zip(keys, files, strict=False)]
    status, text = shell(f"operation={operation}", *words, "output=out", *QUICK)
    assert status == 0, text
    assert f"steps/, {steps} PNG files" in text
    latent = load_latent("out/result.safetensors")
    assert latent.noise is not None
    assert ("photo" in latent.settings["searches"]) == (operation == "local_edit")
    assert text.count("substitute") == 1
    assert "substitute" in latent.settings["notes"][0]


def test_larger_pictures_and_masks_are_made_smaller(shell: Shell) -> None:
    big = a_picture("big.png", (40, 40))
    words = [f"operation.image={big}", f"operation.hole={a_mask('hole.png', 40, (10, 10, 30, 30))}"]
    assert shell("operation=inpaint", *words, "output=out", *QUICK)[0] == 0
    assert pixels("out/steps/1_hole.png").shape == (SIZE, SIZE)
    assert abs(float(pixels("out/steps/1_hole.png").mean()) / 255 - 0.25) < 0.02


def test_a_part_of_a_face(shell: Shell) -> None:
    a_latent("a", 0, noise=noise_of(tiny(), 0))
    a_latent("b", 1)
    words = ["operation=attribute_transfer", "operation.box=2,3,8,9", "latents=run", "output=out"]
    status, text = shell(*words, "operation.to=6,6", "effort.blur_px=0")
    assert status == 0, text
    assert (pixels("out/steps/2_mask.png") > 0).sum() == 36  # as hard as it is asked for
    assert "note: layer b8.conv1" in text
    assert sorted(path.name for path in Path("out/steps").iterdir()) == [
        "0_face.png",
        "1_donor.png",
        "2_mask.png",
    ]
    assert (pixels("out/result.png") != pixels("out/steps/0_face.png")).any()
    assert not Path("out/result.safetensors").exists()


def test_classes(shell: Shell) -> None:
    words = [f"operation.image={a_picture('a.png')}", f"operation.hole={a_mask('hole.png')}"]
    status, text = shell("generator=classes", "operation=inpaint", *words, *QUICK)
    assert (status, text) == (1, "i2i-edit: label: this generator has 2 classes; give label=0 to 1\n")
    status, text = shell("generator=classes", "operation=inpaint", *words, *QUICK, "label=1", "output=out")
    assert status == 0, text
    label = load_latent("out/result.safetensors").label
    assert label is not None
    assert label.tolist() == [0, 1]


# Faces in larger pictures.


def a_face(name: str) -> torch.Tensor:
    """Write a picture of 60 x 50 px with landmarks beside it, and return these."""
    a_picture(f"{name}.png", (50, 60))
    points = torch.zeros(68, 2, dtype=torch.float64)
    points[36:42], points[42:48] = torch.tensor([26.0, 20]), torch.tensor([34.0, 20])
    points[48], points[54] = torch.tensor([28.0, 29]), torch.tensor([32.0, 29])
    Path(f"{name}.landmarks.json").write_text(json.dumps(points.tolist()))
    return points


def test_a_face_is_cropped_edited_and_pasted_back(shell: Shell) -> None:
    points = a_face("me")
    hole = np.zeros((50, 60), np.uint8)
    hole[18:26, 24:36] = 255
    Image.fromarray(hole).save("hole.png")
    words = ["operation=inpaint", "operation.image=me.png", "operation.hole=hole.png", "align=true", *QUICK]
    status, text = shell(*words, "output=out")
    assert status == 0, text
    assert "pasted.png, 60 x 50 px" in text
    before, after = pixels("me.png").astype(int), pixels("out/pasted.png").astype(int)
    changed = (np.abs(after - before).max(2) > 0).nonzero()
    assert len(changed[0]) > 20
    quad = face_quad(points)
    assert changed[1].min() >= quad[:, 0].min() - 1
    assert changed[0].min() >= 18 - 8  # the mask and its soft border, in the pixels of the photo
    assert changed[0].max() <= 26 + 8
    Path("me.landmarks.json").write_text("[]")
    assert "me.landmarks.json: no face was found" in shell(*words)[1]
    Path("me.landmarks.json").write_text(json.dumps([points.tolist()] * 2))
    text = shell(*words)[1]
    assert text == "i2i-edit: me.landmarks.json: 2 faces were found; crop the image to one\n"
    Path("me.landmarks.json").write_text("[[1, 2], [3, 4]]")
    assert "shape (2, 2); a face has 68 points" in shell(*words)[1]
    Path("me.landmarks.json").unlink()


def test_scribbles_are_cut_out_by_the_face_that_they_are_on(shell: Shell) -> None:
    """The scribbled copy has no landmarks of its own, and a detector would give others."""
    a_face("me")
    scribbled = pixels("me.png").copy()
    scribbled[22:24, 26:34] = 255
    Image.fromarray(scribbled).save("drawn.png")
    words = ["operation=local_edit", "operation.photo=me.png", "operation.scribbled=drawn.png", "align=true"]
    status, text = shell(*words, *QUICK, "output=out")
    assert status == 0, text
    mask = pixels("out/steps/2_mask.png")
    assert 0 < (mask > 127).mean() < 0.2
    a_picture("small.png", (40, 40))
    status, text = shell(*words, *QUICK, "operation.scribbled=small.png")
    assert (status, text.count("\n")) == (1, 1)
    assert "operation.scribbled=small.png: 40x40 px; me, which it is drawn on, has 60x50 px" in text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["operation=morph", "operation.pictures=2", "seeds=0,1"], ["morph0_000", "morph0_001"]),
        (["operation=corners", "operation.side=2"], [f"corners_{row}_{x}" for row in (0, 1) for x in (0, 1)]),
        (["operation=style_transfer"], [f"style_{row}_{x}" for row in (0, 1) for x in (0, 1)]),
        (
            ["operation=direction", "operation.strengths=0,2", "operation.samples=100"],
            ["direction0_000", "direction0_001"],
        ),
        (
            [
                "operation=expression_transfer", "operation.threshold=0.1", "operation.strengths=0,1",
                "operation.box=0,0,5,16", "seeds=5,6,7",
            ],
            ["expression_000", "expression_001"],
        ),
    ],
)  # fmt: skip
def test_edits_of_latents_are_put_back_into_a_photo(shell: Shell, words: list[str], shown: list[str]) -> None:
    quad = face_quad(a_face("me, a photo"))
    status, text = shell(*words, "paste=me, a photo.png", "output=out", "video.frames=0")
    assert status == 0, text
    assert f"pasted/, {len(shown)} PNG files, 60 x 50 px" in text
    assert sorted(path.stem for path in Path("out/pasted").iterdir()) == shown
    before = pixels("me, a photo.png").astype(int)
    for name in shown:
        pasted = pixels(f"out/pasted/{name}.png").astype(int)
        rows, columns = (np.abs(pasted - before).max(2) > 0).nonzero()
        assert len(rows) > 100
        assert columns.min() >= quad[:, 0].min() - 1
        assert columns.max() <= quad[:, 0].max() + 1
        # Away from the border, the face of the photo is the very picture that was drawn.
        whole = torch.from_numpy(pasted.astype(np.uint8)).permute(2, 0, 1)[None] / 127.5 - 1
        back = crop(whole, quad, SIZE)[0].permute(1, 2, 0).numpy()
        drawn_there = pixels(f"out/images/{name}.png") / 127.5 - 1
        assert np.corrcoef(back[3:-3, 3:-3].ravel(), drawn_there[3:-3, 3:-3].ravel())[0, 1] > 0.9


def test_a_photo_to_put_back_into_is_checked_first(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    points = a_face("me")
    for words in (
        ["operation=inpaint", "operation.image=me.png", "operation.hole=me.png", "align=true", *QUICK],
        ["operation=attribute_transfer", "operation.box=2,3,8,9"],
    ):
        text = shell(*words, "paste=me.png")[1]
        assert text.startswith(
            "i2i-edit: paste=me.png: edits of latents alone are put back: corners, direction, "
            "expression_transfer, morph, style_transfer; edits in masks"
        )
        assert text.count("\n") == 1
    assert shell("paste=no.png")[1] == "i2i-edit: paste=no.png: missing\n"
    Path("me.landmarks.json").write_text("[]")
    assert "me.landmarks.json: no face was found" in shell("paste=me.png")[1]
    Path("me.landmarks.json").write_text(json.dumps([points.tolist()] * 2))
    assert "me.landmarks.json: 2 faces were found" in shell("paste=me.png")[1]
    Path("me.landmarks.json").unlink()
    monkeypatch.setattr("i2i_lightning.data.alignment.can_detect", lambda: False)
    assert shell("paste=me.png")[1].startswith("i2i-edit: paste=me.png: no me.landmarks.json beside me.png")
    assert not Path("outputs").exists()


def test_landmarks_are_found_or_asked_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    points = a_face("me")
    Path("me.landmarks.json").unlink()
    words = ["operation=inpaint", "operation.image=me.png", "operation.hole=me.png", "align=true", *QUICK]
    monkeypatch.setattr("i2i_lightning.data.alignment.can_detect", lambda: False)
    text = shell(*words)[1]
    assert text.startswith("i2i-edit: align=true: no me.landmarks.json beside me.png")
    assert text.count("\n") == 1
    monkeypatch.setattr("i2i_lightning.data.alignment.can_detect", lambda: True)
    monkeypatch.setattr("i2i_lightning.data.alignment.detect", lambda pixels: points[None])
    status, text = shell(*words, "output=out")
    assert status == 0, text
    monkeypatch.setattr("i2i_lightning.data.alignment.detect", lambda pixels: points.expand(3, -1, -1))
    assert "me.png: 3 faces were found; crop the image to one" in shell(*words)[1]


# What goes wrong.


def files() -> None:
    """Write what the slips below speak of."""
    a_latent("good")
    a_latent("strange", generator=tiny(seed=1))
    path = a_latent("nan")
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"
    path.write_bytes(content)
    save_file({"w_plus": torch.zeros(6, 8)}, "bare.safetensors")
    a_picture("square.png"), a_picture("wide.png", (16, 20)), a_picture("grey.png", mode="L")
    a_mask("mask.png"), a_mask("large.png", 32), a_mask("black.png", box=(0, 0, 0, 0))
    a_mask("white.png", box=(0, 0, SIZE, SIZE))
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()


BOX = ["operation=attribute_transfer", "operation.box=1,2,3,4"]
SMILE = ["operation.attribute=smile", "operation.strengths=1"]
LONG = ["tile_px=3000", "video.frames=100"]
INPAINT = ["operation=inpaint", "operation.image=square.png", "operation.hole=mask.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["latents=run/latents/strange.safetensors"], "latent strange: belongs to another"),
        (["latents=run/latents/nan.safetensors"], "run/latents/nan.safetensors: w_plus holds numbers"),
        (["latents=bare.safetensors"], "bare.safetensors: not a latent file of i2i_lightning"),
        (["latents=none.safetensors"], "none.safetensors: no such latent file"),
        (["latents=empty"], "latents=empty: no latent files (*.safetensors) in this folder or its latents/"),
        (["latents=run/latents/good.safetensors"], "latents: 1 given; this edit takes at least 2: the ends"),
        (["latents=run", "seeds=0"], "latents, seeds: both given; an edit takes one of them"),
        (["seeds=abc"], "seeds=abc: give seeds from 0 up"),
        (["seeds=0"], "latents: 1 given; this edit takes at least 2"),
        (["operation.pictures=1"], "operation.pictures=1: a strip has at least 2, its ends"),
        (["operation=mroph"], "operation=mroph: no such option. Did you mean morph?"),
        (["operation.picture=3"], "operation.picture: no such key. Did you mean operation.pictures?"),
        (["operation=direction", "operation.find=svm"], "operation.find=svm: choose one of components"),
        (["operation=direction", "operation.strengths=a,b"], "operation.strengths=a,b: give numbers"),
        (["operation=direction", "operation.file=no.pt"], "no.pt: no such direction file"),
        (["operation=direction", "operation.rows=9"], "operation.rows=9: 9 is too large"),
        ([*INPAINT, "operation.hole=large.png"], "operation.hole=large.png: 32x32 px; a mask of square has"),
        ([*INPAINT, "operation.hole=black.png"], "operation.hole=black.png: is empty (all black)"),
        ([*INPAINT, "operation.hole=white.png"], "hole: covers the whole image; leave something to go by"),
        ([*INPAINT, "operation.hole=null"], "operation.hole: missing; give an image that is white"),
        ([*INPAINT, "operation.image=null"], "operation.image: missing; give an image file"),
        ([*INPAINT, "operation.image=no.png"], "operation.image=no.png: missing"),
        ([*INPAINT, "operation.image=text.png"], "operation.image=text.png: text, not images"),
        ([*INPAINT, "operation.image=wide.png"], "operation.image=wide.png: 20x16 px is not square; crop it"),
        (
            [*INPAINT, "operation.image=grey.png"],
            "operation.image=grey.png: grey (1 channel) where this generator draws RGB: save it as RGB, or",
        ),
        ([*INPAINT, "generator=grey"], "operation.image=square.png: RGB (3 channels) where this"),
        ([*INPAINT, "effort.noise_steps=-1"], "noise_steps=-1: give at least 0"),
        (["operation=attribute_transfer"], "operation.box: missing; give left,top,right,bottom in pixels"),
        (["operation=attribute_transfer", "operation.box=1,2,3"], "operation.box=1,2,3: give left,top"),
        (["operation=attribute_transfer", "operation.box=4,4,2,8"], "box=[4, 4, 2, 8]: left, top"),
        ([*BOX, "operation.to=4.7,5"], "operation.to=4.7,5: give left,top in whole pixels"),
        ([*BOX, "operation.to=4"], "operation.to=4: give left,top in whole pixels"),
        (
            ["operation=attribute_transfer", "operation.box=0,0,4,4", "operation.layer=b64"],
            "layer b64: this generator has b4.conv1",
        ),
        (
            ["operation=local_edit", "operation.photo=square.png", "operation.scribbled=square.png"],
            "operation.scribbled: shows the same as operation.photo",
        ),
        # Options that would do nothing.
        *(
            ([f"operation={operation}", "seeds=0,1"], "latents: 2 given; this edit takes none: it searches")
            for operation in ("inpaint", "crossover", "local_style_transfer")
        ),
        (["align=true"], "align=true: this edit reads no pictures; crossover, expression_transfer, "),
        (["operation=attribute_transfer", "align=true"], "align=true: this edit reads no pictures; "),
        (["operation=expression_transfer", "align=true"], "align=true: this edit reads no pictures; "),
        (
            ["operation=expression_transfer", "operation.rows=1"],
            "operation.rows=1: needs operation.neutral and operation.expressive",
        ),
        (
            ["operation=expression_transfer", "operation.anchor=3"],
            "operation.anchor=3: needs operation.neutral and operation.expressive",
        ),
        (["operation=expression_transfer", "operation.layer=b8"], "operation.layer=b8: needs operation.box"),
        *(
            (["operation=direction", *words], f"{words[0]}: needs {needs}")
            for words, needs in (
                (["operation.labels=a.csv", "operation.find=factorisation"], "operation.find=labels"),
                (["operation.labels=a.csv", "operation.find=components"], "operation.find=labels"),
                (["operation.labelled=run"], "operation.find=labels"),
                (["operation.component=1", "operation.labels=a.csv"], "operation.file or operation.find"),
                (["operation.samples=50", "operation.file=a.pt"], "operation.find=components or "),
                (["operation.of=tiny"], "operation.file or operation.orthogonal_to"),
            )
        ),
        ([*INPAINT, "operation.rows=[]"], "operation.rows=[]: names no row, and nothing would change"),
        (["operation=direction", "operation.rows=[]"], "operation.rows=[]: names no row, and nothing"),
        (["convert=maybe"], "convert=maybe: choose one of none, match"),
        (["video.frames=-1"], "video.frames=-1: give 0, for no animation, or more"),
        (["output=run"], "output=run: is there already and not empty"),
        (["tile_px=2"], "tile_px=2: give at least 8"),
        (["device=gpu7"], "device=gpu7: choose one of auto"),
        ([*LONG, "operation.pictures=2"], "video.format=webp: 200 images of 3000 px are 5.0 GiB in memory"),
        ([*LONG, "operation=direction", "operation.samples=100"], "video.format=webp: 200 images of 3000 px"),
        ([*LONG, "operation=expression_transfer", "operation.threshold=0"], "video.format=webp: 200 images"),
    ],
)  # fmt: skip
def test_a_slip_is_told_in_one_line(shell: Shell, words: list[str], says: str) -> None:
    files()
    status, text = shell(*QUICK, *words)
    assert status == 1, text
    assert text.startswith(f"i2i-edit: {says}"), text
    assert text.count("\n") <= 2, text
    assert not Path("outputs").exists()


def test_scribbles_refuse_a_latent_with_tuned_weights(shell: Shell) -> None:
    files()
    a_latent("tuned", 0, tuned={"synthesis.b16.torgb.bias": torch.full((3,), 0.5)})
    words = [f"operation.{key}=square.png" for key in ("photo", "scribbled")]
    words += ["operation.mask=mask.png", "latents=run/latents/tuned.safetensors"]
    status, text = shell(*QUICK, "operation=local_edit", *words)
    assert (status, text.count("\n")) == (1, 1)
    assert "take one without tuning" in text


def test_grey_files_can_be_converted(shell: Shell) -> None:
    a_picture("grey.png", mode="L")
    words = ["operation=inpaint", "operation.image=grey.png", f"operation.hole={a_mask('mask.png')}", *QUICK]
    assert shell(*words, "convert=match", "output=out")[0] == 0


def test_help_lists_the_operations() -> None:
    page = help_page.page("i2i-edit", "edit", None, conf_dir())
    assert "morph*" in page
    for name in ("crossover", "inpaint", "local_edit", "attribute_transfer", "direction"):
        assert name in page
    assert "generator=embedded" in page
    topic = help_page.topic_page("operation=inpaint", conf_dir())
    assert "white where the hole is" in topic
