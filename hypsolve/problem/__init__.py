"""What is given, what is decided, what a decision costs, and whether it is legal."""
