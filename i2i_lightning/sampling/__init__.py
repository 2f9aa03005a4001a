"""Pictures of a style-based generator: samples of seeds, mixtures of their styles, ways between them."""
