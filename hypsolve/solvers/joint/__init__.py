"""Methods that find a partition and a schedule of the requests jointly."""
