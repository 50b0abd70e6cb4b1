"""The coordinator: hand-out, aggregation, the shared model."""
