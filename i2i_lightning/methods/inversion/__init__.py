"""Embedding images in the latent space of a generator.

The algorithm is plain PyTorch, in stages, shared by the method (:mod:`.method`, which needs Lightning and is
therefore not imported here) and by edits that embed what they have changed.
"""

from i2i_lightning.methods.inversion.embedding import Embedding, render
from i2i_lightning.methods.inversion.engine import Search, embed
from i2i_lightning.methods.inversion.objective import InversionLoss, Objective
from i2i_lightning.methods.inversion.stages import Stage
from i2i_lightning.methods.inversion.starts import Start, Statistics, statistics
from i2i_lightning.methods.inversion.targets import Targets

__all__ = [
    "Embedding",
    "InversionLoss",
    "Objective",
    "Search",
    "Stage",
    "Start",
    "Statistics",
    "Targets",
    "embed",
    "render",
    "statistics",
]
