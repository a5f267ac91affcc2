"""A model cut into stages, head first: named by the user or discovered."""
