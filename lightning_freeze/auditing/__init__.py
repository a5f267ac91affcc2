"""Proof that frozen is frozen."""
