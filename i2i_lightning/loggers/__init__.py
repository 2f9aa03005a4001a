"""Where the numbers of a run are written: a CSV file that survives a resume, and Weights & Biases."""
