"""What a run leaves behind: its folder, model card, manifest, tracking."""
