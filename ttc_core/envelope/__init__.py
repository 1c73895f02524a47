"""What adaptation may change, determined beforehand: clauses, and what it took to stay within."""
