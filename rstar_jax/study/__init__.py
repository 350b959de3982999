"""Experiments over whole runs: what each part of the method is worth."""
