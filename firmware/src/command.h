/* Reads what the host sends: plain lines, announcements, checked lines. */
#ifndef COMMAND_H
#define COMMAND_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the host has announced itself: then status lines have a number and a checksum. */
extern bool command_is_checked;
/* Number of the newest accepted command, and how many lines were refused (both wrap at 256). */
extern uint8_t command_accepted, command_refused;

/* Read at most one command; return the ticks that were spent waiting for bytes (never any with the strict reader). */
uint32_t command_read(void);

#endif
