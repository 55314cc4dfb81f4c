"""PyTorch modules: from `torch.export` to a graph, and from a graph to a module."""
