"""What people see of a run: progress while it goes on, and its table afterwards."""
