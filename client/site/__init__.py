"""A node's processes and its way to the coordinator."""
