"""Tasks: what a network is trained for. The engine asks a task, see task.py, and knows none."""
