"""What lives inside the library."""
