"""Online dispatch: policies, schedules at flow level, and dispatchers for a real router."""
