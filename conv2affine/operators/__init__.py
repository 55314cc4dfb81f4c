"""The compiled operators, as they are registered with PyTorch."""
