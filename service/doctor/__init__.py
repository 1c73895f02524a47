"""Look over an installation, a model and its data before it serves."""
