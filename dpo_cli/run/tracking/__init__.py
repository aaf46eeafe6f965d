"""Trackers: W&B, SwanLab and TensorBoard, as readers of a run's event stream beside it."""
