"""The architectures: a new family is its parameters, a file, and an entry in two tables."""
