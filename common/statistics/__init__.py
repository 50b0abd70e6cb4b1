"""Sums over records that merge exactly, and what is solved from them."""
