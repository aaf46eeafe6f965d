"""Export of trained weights in formats that other tools load."""
