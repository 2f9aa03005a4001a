"""The identity term of an inversion: its closed form, its masks, every image by itself, slips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from i2i_lightning.checkpoints import load_style_generator
from i2i_lightning.losses.identity import identity_loss
from i2i_lightning.methods.inversion import InversionLoss, Objective, Search, Stage, Start, Targets, embed
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError
from tests.losses.recognisers import identity
from tests.methods.inversions import generator, images, names, part

STAGES = {
    "w_plus": Stage(["w_plus"], 5, rate=0.05),
    "tune": Stage(["generator"], 2, rate=1e-3, keep="last"),
}
W_PLUS = {"w_plus": Stage(["w_plus"], 6, rate=0.05)}


def close(left: Tensor, right: Tensor, tolerance: float = 1e-7) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def of_faces(weight: float = 1.0, mse: float = 0.0) -> InversionLoss:
    return InversionLoss(None, lambda_mse=mse, identity=identity(), lambda_identity=weight)


def embedded() -> StyleGenerator:
    return load_style_generator("embedded").double()


def test_a_batch_equals_its_images_alone() -> None:
    network = embedded()
    rng = torch.Generator().manual_seed(2)
    z = torch.randn(3, network.z_dim, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        w_plus = network.mapping.to_w(z)[:, None].expand(-1, network.num_ws, -1)
        real = network.synthesis(w_plus).flip(3)
    wanted = Targets(real, names())
    start = Start("best", candidates=5)
    batch = embed(network, wanted, STAGES, of_faces(mse=0.1), start)
    first = embed(network, wanted, {"a": Stage(["w_plus"], 1, rate=1e-9)}, of_faces(mse=0.1), start)
    assert (batch.total < 0.9 * first.total).all()
    close(batch.terms["identity"], identity().double()(batch.image, real))
    close(batch.total, batch.terms["identity"] + 0.1 * batch.terms["mse"])
    for index in range(3):
        alone = embed(network, part(wanted, index), STAGES, of_faces(mse=0.1), start)
        close(batch.w_plus[index], alone.w_plus[0])
        close(batch.image[index], alone.image[0])
        close(batch.total[index], alone.total[0])
        assert batch.tuned is not None
        assert alone.tuned is not None
        for key, value in batch.tuned[index].items():
            close(value, alone.tuned[0][key])


def test_the_features_of_targets_are_taken_one_by_one_and_once() -> None:
    loss = of_faces()
    assert loss.identity is not None
    sizes: list[int] = []
    loss.identity.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    mine = Search(generator(), W_PLUS, loss)
    mine.begin(Targets(images(), names()))
    assert sizes == [1, 1, 1]
    mine.step()
    mine.step()
    assert sizes == [1, 1, 1, 3, 3]


def test_candidates_are_compared_by_it() -> None:
    wanted = Targets(images(dtype=torch.float64), names())
    loss = of_faces()
    objective = Objective(loss, wanted, {"identity"})
    assert loss.identity is not None
    candidates = images(2, dtype=torch.float64).flip(2)
    found = objective.cross(candidates, {"identity": 2.0}, torch.tensor([2, 0]))
    mine, theirs = loss.identity.features(candidates), loss.identity.features(wanted.real[[2, 0]])
    close(found, torch.stack([2 * identity_loss(mine, face[None]) for face in theirs]))
    assert found.std() > 1e-3


@pytest.mark.parametrize("key", ["mask", "perceptual_mask"])
def test_what_a_mask_leaves_out_does_not_count(key: str) -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    other = images().clone()
    other[..., 8:] = -other[..., 8:]
    found = [
        embed(generator(), Targets(real, names(), **{key: mask}), W_PLUS, of_faces())
        for real in (images(), other)
    ]
    close(found[0].w_plus, found[1].w_plus, 0)
    free = embed(generator(), Targets(other, names()), W_PLUS, of_faces())
    assert (free.w_plus - found[0].w_plus).abs().max() > 1e-3
    close(found[0].terms["identity"], identity()(found[0].image * mask, images() * mask), 1e-5)


def test_a_stage_may_weigh_it_and_stop_by_it() -> None:
    weighed = {"a": Stage(["w_plus"], 3, weights={"identity": 2.0, "mse": 0.0}, stop_at={"identity": 2.5})}
    found = embed(generator(), Targets(images(), names()), weighed, of_faces(0.0))
    assert found.steps.tolist() == [0, 0, 0]
    close(found.total, 2 * found.terms["identity"], 1e-6)
    assert found.notes == ["identity: a tiny recogniser"]


def test_a_recogniser_without_a_weight_is_told() -> None:
    mine = Search(generator(), W_PLUS, of_faces(0.0, mse=1.0))
    assert mine.notes == ["identities are not compared: give loss.lambda_identity a weight"]
    mine.begin(Targets(images(), names()))
    assert "identity" not in mine.terms()


def test_a_weight_without_a_recogniser_is_refused() -> None:
    message = r"identities need a network; give your loss\.identity\.path=model_ir_se50\.pth$"
    with pytest.raises(UserError, match=rf"^loss\.lambda_identity=0\.1: {message}"):
        InversionLoss(None, lambda_identity=0.1)
    for slip in ({"weights": {"identity": 1.0}}, {"stop_at": {"identity": 0.1}}):
        with pytest.raises(UserError, match=rf"^method\.stages\.a: {message}"):
            Search(generator(), {"a": Stage(["w_plus"], 3, **slip)}, InversionLoss(None))
    with pytest.raises(UserError, match=r"^loss\.lambda_identity=-1"):
        of_faces(-1)


def test_it_comes_last_for_those_who_give_weights_in_order() -> None:
    loss = InversionLoss(None, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    assert (loss.lambda_prior, loss.lambda_anchor, loss.lambda_noise) == (5.0, 6.0, 7.0)
    assert loss.identity is None
    assert loss.settings()["identity"] is None
