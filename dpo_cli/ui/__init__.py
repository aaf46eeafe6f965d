"""Terminal panel, plain output and HTML reports, drawn from the events of a run."""
