"""Check that frozen parameters and buffers do not change."""
