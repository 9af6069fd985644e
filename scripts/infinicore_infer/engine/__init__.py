"""Many requests at once on one thread; no HTTP."""
