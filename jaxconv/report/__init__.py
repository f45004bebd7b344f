"""The page of a run or of a sweep: its sections, how it looks, and when it is written."""
