"""Text to tokens and back: no model, no library."""
