"""What a reply goes through before its update may be combined: one step a file, in one order."""
