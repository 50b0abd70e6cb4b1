"""What a hospital decides and approves: its own file, its policy, who said yes to what."""
