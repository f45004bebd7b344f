"""Training: state, step, optimizer, losses, devices, checkpoints and the loop that joins them."""
