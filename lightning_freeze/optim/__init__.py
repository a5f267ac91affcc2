"""Optimizers whose groups are slots: splitting and filling them, their schedulers, factors around a step."""
