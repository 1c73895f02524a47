"""Adaptation that watches itself: evidence, snapshots, and what is done about harm."""
