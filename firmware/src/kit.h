/* The kit's numbers: joints, pins, limits, times. The same stand in featherweight/robot/kit.py. */
#ifndef KIT_H
#define KIT_H

#include <stdint.h>

#define SERVOS 6
#define POTENTIOMETERS 6
#define DIGITAL_INPUTS 5

#define LIMIT_DEG 90
/* Pulses of the Arduino Servo library: -90 and +90 degrees. */
#define PULSE_MIN_US 544
#define PULSE_MAX_US 2400
#define FRAME_US 20000

#define BAUD 115200UL
/* 10 ms of delay and about 1.4 ms of work in the published firmware. */
#define LOOP_US 11400UL
#define PARSE_TIMEOUT_MS 1000UL

/* The checked protocol: silence of the host after which the arm is held. The loop that notices it may come one loop
   later, so it acts one loop earlier. */
#define WATCHDOG_MS 200UL
#define MAX_SPEED_DEG_S 88L
#define MAX_ACCELERATION_DEG_S2 2500L

/* Ticks of timer 1: half a microsecond. */
#define TICKS_PER_US 2UL
#define TICKS_PER_MS 2000UL

#endif
