"""The training loop and its parts: state, steps, graphs and compilation."""
