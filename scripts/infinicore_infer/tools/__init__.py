"""Programs that measure and examine."""
