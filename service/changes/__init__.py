"""The log of changes: what streams learned and what was done with them, in a chain of hashes."""
