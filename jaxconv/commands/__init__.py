"""The commands, grouped by topic: each module adds its own to the parser."""
