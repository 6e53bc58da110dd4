#include "status.h"

#include <util/crc16.h>

#include "command.h"
#include "inputs.h"
#include "kit.h"
#include "motion.h"
#include "serial.h"

static uint16_t sum;
static uint8_t number;

static void put(char c) {
  sum = _crc_xmodem_update(sum, (uint8_t)c);
  serial_write((uint8_t)c);
}

/* By subtraction: a division takes this processor 200 cycles, and a line has 60 digits. */
static void put_field(int16_t value) {
  static const uint16_t powers[] = {1000, 100, 10};
  uint16_t rest = (uint16_t)(value < 0 ? -value : value);
  if (value < 0) put('-');
  bool has_begun = false;
  for (uint8_t i = 0; i < 3; i++) {
    char digit = '0';
    for (; rest >= powers[i]; digit++) rest -= powers[i];
    has_begun |= digit > '0';
    if (has_begun) put(digit);
  }
  put((char)('0' + rest));
  put(' ');
}

static void put_text(const char *text) {
  while (*text) put(*text++);
}

void status_print(void) {
  sum = 0xffff;
  put_field(SERVOS);
  for (uint8_t i = 0; i < SERVOS; i++) put_field(motion_reported[i]);
  put_field(POTENTIOMETERS);
  for (uint8_t i = 0; i < POTENTIOMETERS; i++) put_field((int16_t)inputs_pots[i]);
  put_field(DIGITAL_INPUTS);
  for (uint8_t i = 0; i < DIGITAL_INPUTS; i++) put_field(inputs_digitals[i]);
  if (!command_is_checked) {
    put_text("UMI\r\n");
    return;
  }
  put_field(4);
  put_field(number++);
  put_field(command_accepted);
  put_field(command_refused);
  put_field(motion_is_held);
  put_text("UM2 ");
  uint16_t check = sum;
  for (uint8_t i = 0; i < 4; i++) {
    put((char)('A' + (check >> 12)));
    check = (uint16_t)(check << 4);
  }
  put_text("\r\n");
}
