"""Recognising, loading and running models; no model code of our own where transformers has it."""
