"""What a node keeps on its own disk: backbones, activations, rounding errors, logs."""
