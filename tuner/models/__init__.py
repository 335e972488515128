"""The architectures; a new family needs its parameters, a file, and an entry in two tables."""
