"""The problem: instances, solutions, their objectives, and the rules they must keep."""
