"""Methods that decide the partition and the schedule of the requests."""
