"""Operations on latents: what an edit does between an inversion and a picture."""
