"""Leaders: potentiometers, keyboard, gamepad, scripts, and what turns their signals into joint angles."""
