"""Reports as HTML and SVG files."""
