"""Devices, number formats and CPU kernels."""
