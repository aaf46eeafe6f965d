"""Hostile inputs by the thousand: `make fuzz`. What it found before is in `corpus/`."""
