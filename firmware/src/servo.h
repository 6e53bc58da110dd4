/* Six servo pulses one after the other from timer 1, every 20 ms. */
#ifndef SERVO_H
#define SERVO_H

#include <stdint.h>

void servo_start(void);
/* Let the pulses begin; before, the servos rest without any. */
void servo_enable(void);
/* Set a pulse in 256ths of a degree, -90 * 256 to 90 * 256. */
void servo_write(uint8_t joint, int16_t angle_256);

#endif
