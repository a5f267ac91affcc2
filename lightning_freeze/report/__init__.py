"""Tables, timeline, picture."""
