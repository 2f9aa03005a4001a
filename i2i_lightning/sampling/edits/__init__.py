"""Edits as people ask for them: latents and pictures in, a folder of pictures and latents out."""
