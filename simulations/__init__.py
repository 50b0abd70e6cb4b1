"""Federations, baselines and studies on one machine."""
