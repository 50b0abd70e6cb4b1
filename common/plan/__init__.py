"""The plan: what all sides agree on, a section a file."""
