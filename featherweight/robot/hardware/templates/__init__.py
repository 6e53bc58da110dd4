"""Files to start from: `fw robot kit template gripper|master` copies them; each is a design of its own."""
