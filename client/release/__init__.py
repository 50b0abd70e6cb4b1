"""What an adapter goes through before it leaves a node: one step a file, in one order."""
