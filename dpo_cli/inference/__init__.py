"""Use of trained models: evaluation and chat."""
