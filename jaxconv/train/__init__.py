"""Training: state, step, optimizer, devices, checkpoints and the training loop."""
