"""What acts for the coordinator: the loop around the plan, and everything that it calls."""
