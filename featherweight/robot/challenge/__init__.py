"""The challenge: cubes into the bin against the clock, judged on the robot's side; anybody can score its log again."""
