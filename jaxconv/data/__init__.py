"""Data: sources (what an example is), loading (how batches reach the device), augmentation (jitted, on the device)."""
