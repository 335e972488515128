"""What ``tuner.train`` is made of: the state of a training, its steps, graphs and compilation."""
