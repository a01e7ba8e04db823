"""Many answers at once in one context: jobs, their slots, and the scheduler."""
