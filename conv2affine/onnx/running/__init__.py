"""Running a model of a file, whole or one node at a time."""
