"""Read a model: its names, patterns, kinds of layers, frozen modules and bits. Nothing here changes a model."""
