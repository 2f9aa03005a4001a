"""Generators with a style per layer, from the files of other projects and of this one."""
