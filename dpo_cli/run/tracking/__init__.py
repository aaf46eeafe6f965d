"""Trackers (W&B, SwanLab, TensorBoard, Trackio, MLflow), fed by a process of their own."""
