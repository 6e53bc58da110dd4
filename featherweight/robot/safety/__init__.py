"""What stands between a leader and the arm: limits, guard, modes; everything in one thread, without a lock."""
