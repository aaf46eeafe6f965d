"""Trained models in use: evaluation and chat."""
