"""Train, compare and edit with image-to-image GANs: one LightningModule per method, composed by Hydra."""

from __future__ import annotations

__version__ = "0.1.0"
