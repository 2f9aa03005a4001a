"""Data: files to uint8 caches to batches, and the embedded data set."""
