"""What ``i2i-doctor`` looks at: the machine, its surroundings, and how fast it trains."""
