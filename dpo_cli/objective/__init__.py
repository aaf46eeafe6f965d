"""The mathematics of preference optimization: tensors in, tensors out."""
