"""Methods, one file per family."""
