"""An emulated kit: the firmware's behaviour in virtual time, behind a pseudo-terminal or inside the process."""
