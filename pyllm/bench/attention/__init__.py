"""Attention nodes, timed: our routes, upstream's kernels and, where they can be imported, FlashInfer and PyTorch, in turn over the same K and V."""
