"""Outputs of a frozen prefix, kept and used again: `prefix` runs the steps, the other files are its parts."""
