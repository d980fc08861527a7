"""One module per architecture: which keys and tensors its files have."""
