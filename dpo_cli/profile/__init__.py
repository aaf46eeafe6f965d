"""Profiles: the settings of a run, read from TOML, validated, and written back."""
