"""Local steps: optimizers, schedules, augmentation. Nothing here knows of privacy."""
