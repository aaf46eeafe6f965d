"""The panel, tables and plain lines on a terminal."""
