/* The kit's firmware: an Arduino Uno with six servos, six potentiometers and five inputs.
 *
 * One loop: move the servos, read the inputs, read one command, print one line, sleep. Protocol and reader are described
 * in README.md beside this folder. */
#include <avr/interrupt.h>

#include "clock.h"
#include "command.h"
#include "inputs.h"
#include "kit.h"
#include "motion.h"
#include "serial.h"
#include "servo.h"
#include "status.h"

int main(void) {
  inputs_start();
  clock_start();
  serial_start();
  servo_start();
  motion_start();
  sei();
  for (;;) {
    uint32_t start = clock_now();
    motion_step();
    inputs_read();
    /* A read that has to wait for bytes makes the loop longer, as in the published firmware. */
    uint32_t waited = command_read();
    status_print();
    clock_sleep_until(start + waited + LOOP_US * TICKS_PER_US, 0);
  }
}
