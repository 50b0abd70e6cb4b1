"""Questions that a federation can put: one a file, one closed registry."""
