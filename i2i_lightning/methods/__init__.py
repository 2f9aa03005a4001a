"""One LightningModule per paper, on one flat base."""
