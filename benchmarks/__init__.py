"""Measurements of speed and quality, and the loops that they compare with."""
