"""The live page: its files, and what it is told once a second."""
