"""Many machines, through Ray."""
