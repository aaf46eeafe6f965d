"""Trained weights in the formats that other tools load."""
