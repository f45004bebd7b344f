"""Import weights from other frameworks and export networks as programs."""
