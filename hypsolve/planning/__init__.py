"""The planner: plans, forecasts, what-if scenarios, re-planning, exports, reports."""
