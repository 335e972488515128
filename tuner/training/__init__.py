"""The training loop, and what it is made of: its state, its steps, graphs and compilation."""
