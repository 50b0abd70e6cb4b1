"""Pre-trained networks: one family a file, one closed registry."""
