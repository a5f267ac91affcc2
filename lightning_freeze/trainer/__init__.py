"""Everything that depends on Lightning's Trainer, its strategies, or ranks."""
