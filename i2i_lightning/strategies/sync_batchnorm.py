"""Synchronise every batch norm of a run that has several processes (``trainer.sync_batchnorm=true``)."""

from __future__ import annotations

from lightning.pytorch.plugins import LayerSync
from torch import nn

from i2i_lightning.networks.sync_batchnorm import SyncBatchNorm2d


class SynchronizedNorms(LayerSync):
    """Replace the batch norms of a method by ones that normalise over the batches of all processes.

    Lightning's own plugin takes torch's layer, which refuses CPUs and would wait for other processes in
    validation too. Checkpoints keep the names and values of plain batch norm. A run of one process is left as
    it is.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with its batch norms synchronised, in place; they keep parameters and buffers."""
        return _replace(model, nn.BatchNorm2d, SyncBatchNorm2d)

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo :meth:`apply`."""
        return _replace(model, SyncBatchNorm2d, nn.BatchNorm2d)


def _replace(model: nn.Module, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]) -> nn.Module:
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is old:
                twin = new(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
                twin.weight, twin.bias = norm.weight, norm.bias
                twin._buffers.update(norm._buffers)
                twin.train(norm.training)
                setattr(parent, name, twin)
    return model
