"""Raw material: one kind a file, from what a reader reads to a prepared batch."""
