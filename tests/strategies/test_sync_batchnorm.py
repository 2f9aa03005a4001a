"""Synchronised batch norms in one process; ``test_two_ranks`` has them in two."""

from __future__ import annotations

import torch
from torch import nn

from i2i_lightning.networks.sync_batchnorm import SyncBatchNorm2d
from i2i_lightning.networks.unet import UNet
from i2i_lightning.strategies.sync_batchnorm import SynchronizedNorms


def test_alone_it_is_batch_norm() -> None:
    x = torch.randn(3, 2, 4, 4)
    plain, synchronised = nn.BatchNorm2d(2), SyncBatchNorm2d(2)
    for training in (True, False):
        assert torch.equal(plain.train(training)(x), synchronised.train(training)(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, synchronised.state_dict()[name])


def test_applied_and_reverted_a_network_keeps_its_parameters_and_keys() -> None:
    network = UNet(3, 3, 4, 4)
    parameters, state = list(network.parameters()), network.state_dict()
    kinds = [type(module) for module in network.modules()]
    norms = SynchronizedNorms()
    network.eval()
    assert norms.apply(network) is network
    assert {type(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {SyncBatchNorm2d}
    assert all(mine is theirs for mine, theirs in zip(network.parameters(), parameters, strict=True))
    assert list(network.state_dict()) == list(state)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    norms.revert(network)
    assert [type(module) for module in network.modules()] == kinds
    assert list(network.state_dict()) == list(state)
