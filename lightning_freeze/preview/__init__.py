"""A LightningCLI config simulated and costed without being trained."""
