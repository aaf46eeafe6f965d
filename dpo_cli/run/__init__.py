"""A run as the outside sees it: its directory, its event stream, its processes."""
