"""Methods that solve an `Instance`, a package per family, and the drivers of solvers."""
