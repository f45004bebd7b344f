"""Network inspection: activations by layer, backward rules, attribution, depth."""
