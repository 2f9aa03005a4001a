"""Generators and discriminators: plain modules that take plain values and can be built by hand."""
