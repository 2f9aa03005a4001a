"""What watches a run: checkpoints, pictures, progress, health."""
