"""How updates are combined: one rule a file, one closed registry."""
