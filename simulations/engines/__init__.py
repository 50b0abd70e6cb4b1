"""The same two apps on one machine: in one process, or on Flower's Simulation Runtime."""
