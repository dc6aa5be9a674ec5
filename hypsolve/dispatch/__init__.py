"""Online dispatch policies, for schedules at flow level and for a real router."""
