"""Evaluation: every example exactly once, under any view, as figures, tables and files."""
