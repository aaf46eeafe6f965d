"""Preference pairs: from files to tokenized rows, batches of tensors and their order."""
