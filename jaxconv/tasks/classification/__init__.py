"""Classification: one class per example, the one with the highest of K logits."""
