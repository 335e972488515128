"""What a search would take: measured, then simulated."""
