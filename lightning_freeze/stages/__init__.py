"""Divide a model into stages, head first: named by the user or discovered."""
