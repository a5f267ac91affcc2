"""Outputs of what is frozen, kept and used again: `memo` runs steps, `step` is one of them; the others are parts."""
