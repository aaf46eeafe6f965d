"""From a file of preference pairs to batches of tensors."""
