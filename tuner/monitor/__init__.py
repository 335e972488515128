"""How a search stands, drawn while it runs."""
