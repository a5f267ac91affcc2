"""Tables, lines, timeline and picture of a run."""
