"""Recognizing, loading and running models; transformers computes every one of them."""
