"""One hospital: its data, its policy, its training."""
