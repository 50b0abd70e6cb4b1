"""Federations, and the command as people run it: shared fixtures end with this folder."""
