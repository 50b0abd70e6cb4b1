"""Scripts that print one table from one run. Nobody imports them."""
