"""What is true of a network for all inputs of a box, in floating point too."""
