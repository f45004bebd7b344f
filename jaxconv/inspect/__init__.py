"""Into a network: layer by layer, backward, what a prediction comes from, how deep it is."""
