"""The page of a run and its parts: one self-contained report.html, for people."""
