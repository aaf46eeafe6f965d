"""What people look at: drawn from events alone."""
