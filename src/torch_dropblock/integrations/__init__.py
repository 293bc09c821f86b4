"""Training frameworks, each imported by its own file alone."""
