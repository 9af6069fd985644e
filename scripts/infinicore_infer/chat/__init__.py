"""A chat in the terminal, and the same for programs as lines of JSON."""
