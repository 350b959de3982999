"""Settings: every key, its default and range; config files; errors as a user sees them."""
