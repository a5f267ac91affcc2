"""How stages are found: `dry_run` and `usage` watch one forward, `blocks`, `units` and `cover` cut the model up."""
