"""Tests of one federation of three hospitals, which ends with this folder."""
