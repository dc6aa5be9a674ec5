"""Methods for a `LayerFlowProblem`, the problem of Helix."""
