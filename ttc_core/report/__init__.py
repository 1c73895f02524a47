"""From result rows to tables."""
