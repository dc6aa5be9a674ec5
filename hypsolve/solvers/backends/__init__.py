"""Drivers of the exact solvers: HiGHS and CBC by PuLP, CP-SAT and SCIP by OR-Tools."""
