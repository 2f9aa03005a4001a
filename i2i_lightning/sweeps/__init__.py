"""What many runs have in common and where they differ. Reads files alone: nothing here imports torch."""
