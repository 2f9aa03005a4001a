"""The comparison of batches with single images, in small."""

from __future__ import annotations

from benchmarks.batches import compare


def test_a_batch_ends_where_its_images_do() -> None:
    exact, rounded = (compare("fast", precision, 2, 2) for precision in ("fp64", "fp32"))
    assert exact["steps"] == {"w_plus": 2, "noise": 2}
    assert exact["w_plus"] < 1e-12
    assert exact["noise"] < 1e-9
    assert exact["psnr_db"] < 1e-9
    assert 1e-12 < rounded["w_plus"] < 1e-2
