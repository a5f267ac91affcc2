"""Simulate a LightningCLI config and compute its costs, without training."""
