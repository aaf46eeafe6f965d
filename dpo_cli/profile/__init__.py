"""The profile: everything a run is told, read from TOML, checked, and written down again."""
