"""The mathematics of preference optimization: functions from tensors to tensors."""
