"""Studies: a grid over a plan's keys, run, tabled and written up."""
