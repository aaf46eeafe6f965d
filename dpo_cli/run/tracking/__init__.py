"""Trackers (W&B, SwanLab, TensorBoard), fed from the event stream by a process of their own."""
