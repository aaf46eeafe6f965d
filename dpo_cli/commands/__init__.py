"""One verb a file; each parses, calls and shows."""
