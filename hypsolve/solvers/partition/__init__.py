"""Methods that decide which tier hosts which blocks."""
