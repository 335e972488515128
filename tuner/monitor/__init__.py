"""Show the progress of a search while it runs."""
