"""Rounds of sums at the server: each node's are added as they arrive, then a head is solved."""
