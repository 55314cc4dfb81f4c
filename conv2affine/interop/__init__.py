"""Other engines, one file each, imported when they are asked for."""
