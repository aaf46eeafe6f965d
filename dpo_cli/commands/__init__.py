"""Commands, one module each: parse the flags, call the API, show the result."""
