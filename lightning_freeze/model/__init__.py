"""A model as it is: names, patterns, layers, what is frozen, its bits. Nothing here changes a model."""
