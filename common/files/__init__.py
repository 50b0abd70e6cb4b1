"""Files: YAML, tensors, whole-or-nothing writing, the app bundle."""
