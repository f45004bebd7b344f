"""Classification: one class an example, told by the highest of K logits."""
