"""What is measured on images: distances to a target, and the judge that scores ToyFaces."""
