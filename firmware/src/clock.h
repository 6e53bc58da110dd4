/* Time from timer 1, and sleep until an instant. */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdbool.h>
#include <stdint.h>

void clock_start(void);
/* Ticks of half a microsecond since the start; wraps after 35 minutes. To be asked at least every 30 ms. */
uint32_t clock_now(void);
/* Sleep until the instant, or until `is_done` (which may be null) says so; returns whether it did. */
bool clock_sleep_until(uint32_t instant, bool (*is_done)(void));

#endif
