"""The `whale` command: parses, calls one function, prints."""
