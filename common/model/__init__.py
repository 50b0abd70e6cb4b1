"""The grafted model: assembled, frozen, sealed, written, shared."""
