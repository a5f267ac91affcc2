"""All that knows Lightning's Trainer, its strategies, or ranks."""
