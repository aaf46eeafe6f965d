"""Direct Preference Optimization for small language models, from the terminal."""

__version__ = "0.1.0"
