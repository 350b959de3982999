"""What fits, and what it would take: models on devices, rounds on TPU slices."""
