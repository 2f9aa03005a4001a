"""Kill training at random moments, continue it, and compare: ``python -m benchmarks.interrupt``."""
