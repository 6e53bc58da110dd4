/* The serial line: 115200 baud, 8N1, a ring for each direction. */
#ifndef SERIAL_H
#define SERIAL_H

#include <stdbool.h>
#include <stdint.h>

void serial_start(void);
/* Whether a byte waits to be read. */
bool serial_has_byte(void);
/* The next byte, or -1; `serial_peek` leaves it there. */
int16_t serial_read(void);
int16_t serial_peek(void);
void serial_write(uint8_t byte);

#endif
