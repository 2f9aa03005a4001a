"""Direction files: round trips, what others publish, and one line for each slip."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from i2i_lightning.checkpoints.directions import load_directions, save_direction
from i2i_lightning.editing.directions import Direction
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError


class Malicious:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def direction() -> Direction:
    torch.manual_seed(0)
    vector = torch.nn.functional.normalize(torch.randn(1, 8))
    return Direction("smile", vector, (0, 2), 1.5, "abc", torch.randn(8), "a test")


def test_what_was_saved_comes_back(direction: Direction, tmp_path: Path) -> None:
    path = tmp_path / "smile.safetensors"
    save_direction(path, vars(direction))
    (fields,) = load_directions(path)
    back = Direction(**fields)
    assert torch.equal(back.vector, direction.vector)
    assert direction.w_avg is not None
    assert back.w_avg is not None
    assert torch.equal(back.w_avg, direction.w_avg)
    assert (back.name, back.rows, back.scale) == ("smile", (0, 2), 1.5)
    assert (back.fingerprint, back.source) == ("abc", "a test")
    bare = Direction("x", torch.ones(3, 8))
    save_direction(path, vars(bare))
    (fields,) = load_directions(path)
    assert (fields["rows"], fields["fingerprint"], fields["w_avg"]) == (None, None, None)
    assert fields["vector"].shape == (3, 8)
    assert [file.name for file in tmp_path.iterdir()] == ["smile.safetensors"]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8), (18, 8), (1, 18, 8)])
@pytest.mark.parametrize("kind", ["pt", "npy"])
def test_published_vectors_keep_their_strength(shape: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    row = torch.randn(8) * 3
    path = tmp_path / f"age.{kind}"
    published = row.expand(shape).contiguous()
    if kind == "pt":
        torch.save(published, path)
    else:
        np.save(path, published.double().numpy())
    (fields,) = load_directions(path)
    assert fields["vector"].shape == (1, 8)  # the same for all rows, and so for any number of them
    assert float(fields["vector"].norm()) == pytest.approx(1)
    moved = Direction(**fields).apply(torch.zeros(6, 8), 4.0)
    torch.testing.assert_close(moved, (4 * row).expand(6, 8))
    assert (fields["name"], fields["source"], fields["w_avg"]) == ("age", path.name, None)


def test_rows_that_differ_stay_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 8)
    torch.save(rows, tmp_path / "age.pt")
    (fields,) = load_directions(tmp_path / "age.pt")
    torch.testing.assert_close(Direction(**fields).apply(torch.zeros(6, 8), 2.0), 2 * rows)


@pytest.mark.parametrize("kind", ["pt", "npz"])
def test_principal_components_bring_their_mean(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    components, mean = torch.linalg.qr(torch.randn(8, 8))[0][:3], torch.randn(8)
    deviations = torch.tensor([3.0, 2.0, 1.0])
    path = tmp_path / f"ffhq_pca.{kind}"
    if kind == "pt":
        torch.save({"mean": mean[None], "comp": components[:, None], "std": deviations}, path)
    else:
        arrays = {"lat_comp": components[:, None], "lat_mean": mean[None], "lat_stdev": deviations}
        others: Any = {"random": np.array([Malicious(tmp_path / "ran")], dtype=object)}
        np.savez(path, **{name: value.numpy() for name, value in arrays.items()}, **others)
    found = [Direction(**fields) for fields in load_directions(path)]
    assert [one.name for one in found] == ["ffhq_pca_0", "ffhq_pca_1", "ffhq_pca_2"]
    assert [one.scale for one in found] == pytest.approx([3, 2, 1], rel=1e-5)
    torch.testing.assert_close(torch.cat([one.vector for one in found]), components)
    assert not (tmp_path / "ran").exists()

    generator = StyleGAN2Generator(8, 3, 8, 8, mapping_layers=1, channel_base=64, channel_max=8)
    generator.mapping.w_avg.copy_(mean)
    found[0].check(generator)
    generator.mapping.w_avg.copy_(torch.randn(8))
    with pytest.raises(UserError, match="ffhq_pca_0: belongs to another generator"):
        found[0].check(generator)


def test_slips(direction: Direction, tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as slip:
            load_directions(tmp_path / name)
        text = str(slip.value)
        assert text.startswith(str(tmp_path / name))
        assert "\n" not in text
        return text

    assert "no such direction file" in refused("none.pt")
    (tmp_path / "a.txt").write_text("x")
    assert "no direction file by its suffix" in refused("a.txt")
    (tmp_path / "a.npy").write_text("x")
    assert "a.npy" in refused("a.npy")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert "not a whole file of arrays" in refused("a.npz")
    np.save(tmp_path / "evil.npy", np.array([Malicious(tmp_path / "ran")], dtype=object))
    assert "refused, it is a pickle" in refused("evil.npy")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol=2))
    assert "refused" in refused("evil.pt")
    assert not (tmp_path / "ran").exists()
    torch.save(torch.zeros(2, 3, 4), tmp_path / "a.pt")
    assert "shape (2, 3, 4) is no direction" in refused("a.pt")
    torch.save(torch.zeros(1, 8, dtype=torch.long), tmp_path / "a.pt")
    assert "torch.int64" in refused("a.pt")
    torch.save(torch.zeros(1, 8), tmp_path / "a.pt")
    assert "leads nowhere" in refused("a.pt")
    torch.save(torch.full((1, 8), torch.nan), tmp_path / "a.pt")
    assert "not finite" in refused("a.pt")
    torch.save({"state_dict": {}}, tmp_path / "a.pt")
    assert "no direction (holds state_dict)" in refused("a.pt")
    torch.save({"comp": torch.ones(3, 8), "mean": torch.ones(8)}, tmp_path / "a.pt")
    assert "without std" in refused("a.pt")
    torch.save({"comp": torch.ones(3, 8), "mean": torch.ones(9), "std": torch.ones(3)}, tmp_path / "a.pt")
    assert "do not belong together" in refused("a.pt")
    save_file({"vector": torch.ones(1, 8)}, tmp_path / "a.safetensors")
    assert "its header has no i2i_lightning.direction" in refused("a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"no")
    assert "not a whole safetensors file" in refused("a.safetensors")

    direction.vector[0, 0] = torch.inf
    with pytest.raises(UserError, match="vector holds numbers that are not finite"):
        save_direction(tmp_path / "b.safetensors", vars(direction))
    assert not (tmp_path / "b.safetensors").exists()
