"""The HTML page of a run or a sweep: its sections, its look, and when it is written."""
