"""Drivers of HiGHS, CBC, CP-SAT and MathOpt."""
