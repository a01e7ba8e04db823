"""What this machine is, how fast it reads weights, and other machines by name."""
