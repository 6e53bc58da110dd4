#include "command.h"

#include <util/crc16.h>

#include "clock.h"
#include "kit.h"
#include "motion.h"
#include "serial.h"

bool command_is_checked;
uint8_t command_accepted, command_refused;

#define LONGEST 40
static char line[LONGEST + 1];
static uint8_t length;
static bool is_overlong;

static bool is_digit(int16_t c) { return c >= '0' && c <= '9'; }

/* Read `count` whole numbers of one to three digits with one space between them; null if anything is wrong, else what
   follows. */
static const char *read_numbers(const char *at, int16_t numbers[], uint8_t count) {
  for (uint8_t i = 0; i < count; i++) {
    if (i > 0 && *at++ != ' ') return 0;
    bool is_negative = *at == '-';
    if (is_negative) at++;
    if (!is_digit(*at)) return 0;
    int16_t value = 0;
    for (uint8_t digits = 0; is_digit(*at); digits++) {
      if (digits == 3) return 0;
      value = (int16_t)(value * 10 + (*at++ - '0'));
    }
    numbers[i] = is_negative ? (int16_t)-value : value;
  }
  return at;
}

static uint16_t checksum(const char *from, const char *to) {
  uint16_t sum = 0xffff;
  while (from < to) sum = _crc_xmodem_update(sum, (uint8_t)*from++);
  return sum;
}

/* "C number q1 .. q6 SUM": the sum is four letters A to P, so that no digit stands before the line end and the
   published firmware would take no such line for a command. */
static bool take_checked(void) {
  int16_t values[1 + SERVOS];
  if (!command_is_checked || line[1] != ' ') return false;
  const char *at = read_numbers(line + 2, values, 1 + SERVOS);
  if (at == 0 || *at++ != ' ' || line + length - at != 4) return false;
  uint16_t sum = 0;
  for (uint8_t i = 0; i < 4; i++) {
    if (at[i] < 'A' || at[i] > 'P') return false;
    sum = (uint16_t)(sum << 4 | (uint8_t)(at[i] - 'A'));
  }
  if (sum != checksum(line, at) || values[0] < 0 || values[0] > 255) return false;
  /* Old and repeated lines are refused. */
  uint8_t ahead = (uint8_t)(values[0] - command_accepted);
  if (ahead == 0 || ahead > 127) return false;
  command_accepted = (uint8_t)values[0];
  motion_set(values + 1);
  return true;
}

/* "V q1 .. q6": the published firmware skips the letter and reads a command that keeps the arm where it reported to
   be; this one changes to the checked protocol. */
static bool take_announcement(void) {
  int16_t pose[SERVOS];
  if (line[1] != ' ') return false;
  const char *at = read_numbers(line + 2, pose, SERVOS);
  if (at == 0 || *at != 0) return false;
  command_is_checked = true;
  command_accepted = command_refused = 0;
  motion_set_checked(pose);
  return true;
}

static bool take_plain(void) {
  int16_t angles[SERVOS];
  const char *at = read_numbers(line, angles, SERVOS);
  if (at == 0 || *at != 0) return false;
  command_is_checked = false;
  motion_set_plain();
  motion_set(angles);
  return true;
}

static void take_line(void) {
  if (length > 0 && line[length - 1] == '\r') length--;
  line[length] = 0;
  bool is_taken = false;
  if (is_overlong || length == 0) is_taken = length == 0 && !is_overlong;
  else if (line[0] == 'C') is_taken = take_checked();
  else if (line[0] == 'V') is_taken = take_announcement();
  else is_taken = take_plain();
  if (!is_taken) command_refused++;
  length = 0;
  is_overlong = false;
}

/* Collect bytes up to one line end, without waiting. Checked lines are taken as long as there are any, so that after a
   jittery loop the newest one counts and none is queued. */
static void read_line(void) {
  int16_t c;
  while ((c = serial_read()) >= 0) {
    if (c == '\n') {
      take_line();
      if (!command_is_checked) return;
      continue;
    }
    if (length < LONGEST && c != 0) line[length++] = (char)c;
    else is_overlong = true;
  }
}

#if !READER_STRICT
static uint32_t waited;

static int16_t peek_with_timeout(void) {
  uint32_t before = clock_now();
  clock_sleep_until(before + PARSE_TIMEOUT_MS * TICKS_PER_MS, serial_has_byte);
  waited += clock_now() - before;
  return serial_peek();
}

/* As Stream::parseInt of the Arduino core reads a number: whatever is no digit and no minus is skipped; each byte may
   take a second; byte 1 is skipped inside a number. */
static int16_t parse_number(void) {
  int16_t c;
  for (;;) {
    c = peek_with_timeout();
    if (c < 0) return 0;
    if (c == '-' || is_digit(c)) break;
    serial_read();
  }
  bool is_negative = false;
  uint16_t value = 0; /* the low 16 bits of the core's long, which are all that its caller keeps */
  do {
    if (c == '-') is_negative = true;
    else if (is_digit(c)) value = (uint16_t)(value * 10u + (uint16_t)(c - '0'));
    serial_read();
    c = peek_with_timeout();
  } while (is_digit(c) || c == 1);
  return (int16_t)(is_negative ? 0u - value : value);
}

static void read_as_published(void) {
  int16_t angles[SERVOS];
  for (uint8_t i = 0; i < SERVOS; i++) angles[i] = parse_number();
  if (serial_read() == '\n') motion_set(angles);
}
#endif

uint32_t command_read(void) {
#if !READER_STRICT
  if (!command_is_checked && length == 0 && !is_overlong && serial_peek() != 'V') {
    waited = 0;
    if (serial_has_byte()) read_as_published();
    return waited;
  }
#endif
  read_line();
  return 0;
}
