"""Differential privacy at a node: DP-SGD, the budget, the ledger."""
