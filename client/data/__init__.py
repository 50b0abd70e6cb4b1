"""A hospital's records under one plan: opened, split, batched, grouped."""
