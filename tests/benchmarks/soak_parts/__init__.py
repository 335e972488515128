"""What the soak tries, a module for each kind."""
