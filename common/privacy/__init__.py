"""Accounting, clipping and randomness that both sides share."""
