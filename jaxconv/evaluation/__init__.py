"""Evaluation: every example exactly once, what of it is seen, what the predictions say, as tables
and files.
"""
