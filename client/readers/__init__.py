"""One file a format: each reader turns a hospital's file into a `Source`
(client/readers/source.py).
"""
