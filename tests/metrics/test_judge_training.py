"""Training the judge: the defects it is shown, the loss, and that a seed repeats it."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.data.toyfaces.parameters import VECTOR_NAMES
from i2i_lightning.metrics import judge_training
from i2i_lightning.metrics.judge import JudgeNetwork
from i2i_lightning.metrics.judge_training import draw_faces, judge_loss, score_judge, spoil, train_judge
from i2i_lightning.types import UserError


def quiet(_: str) -> None:
    pass


def test_spoilt_pictures_stay_pictures():
    faces = draw_faces("train", 8, 64, ("photo",), quiet)
    images = faces.pictures["photo"].repeat(4, 1, 1, 1).float() / 127.5 - 1
    kept = images.clone()
    spoilt = spoil(images, torch.Generator().manual_seed(0))
    assert torch.equal(images, kept)
    assert spoilt.shape == images.shape
    assert spoilt.abs().max() <= 1
    same = (spoilt == images).flatten(1).all(1).float().mean()
    assert 0.1 < same < 0.7
    again = spoil(images, torch.Generator().manual_seed(0))
    assert torch.equal(spoilt, again)


def test_compression_keeps_what_it_does_not_round_away():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(judge_training._compress(image, 1e-5), image, atol=1e-3, rtol=0)
    coarse = judge_training._compress(image, 10.0)
    assert coarse.std() < 0.2 * image.std()


def test_unseen_values_are_not_asked_for():
    torch.manual_seed(0)
    network = JudgeNetwork(8).eval()
    faces = draw_faces("train", 4, 64, ("cartoon",), quiet)
    reading = network(faces.pictures["cartoon"].float() / 127.5 - 1)
    style, weights = torch.ones(4, dtype=torch.long), torch.ones(11)

    def loss(parameters):
        return judge_loss(reading, faces.parsing.long(), faces.landmarks, parameters, style, weights)

    dim, turned = faces.parameters.clone(), faces.parameters.clone()
    dim[:, VECTOR_NAMES.index("light_x")] *= -1
    turned[:, VECTOR_NAMES.index("yaw")] -= 0.5
    plain = loss(faces.parameters)
    assert loss(dim) == plain
    assert loss(turned) != plain


def test_a_seed_repeats_the_judge_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    runs = [train_judge(num_faces=8, steps=3, batch_size=8, base_channels=8, say=quiet) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    for first, second in zip(runs[0].state_dict().values(), runs[1].state_dict().values(), strict=True):
        assert torch.equal(first, second)


def test_slips_are_named():
    with pytest.raises(UserError, match="--steps 0"):
        train_judge(steps=0)


def test_scores_by_kind_and_size():
    from i2i_lightning.metrics.judge import Judge

    rows = score_judge(Judge(JudgeNetwork(8)), count=2, sizes_px=(32,))
    assert set(rows) == {"photo_32", "cartoon_32", "blank", "chance"}
