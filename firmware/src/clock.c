#include "clock.h"

#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>

static uint32_t total;
static uint16_t last;

/* Wakes the processor at the end of a sleep; that is all. */
EMPTY_INTERRUPT(TIMER1_COMPB_vect)

void clock_start(void) {
  TCCR1A = 0;
  TCCR1B = _BV(CS11); /* 16 MHz / 8 */
  TIMSK1 |= _BV(OCIE1B);
  set_sleep_mode(SLEEP_MODE_IDLE);
}

uint32_t clock_now(void) {
  /* Both bytes of the counter pass through one register that the servos' interrupt uses, too. */
  uint8_t state = SREG;
  cli();
  uint16_t count = TCNT1;
  SREG = state;
  total += (uint16_t)(count - last);
  last = count;
  return total;
}

bool clock_sleep_until(uint32_t instant, bool (*is_done)(void)) {
  /* An instant more than 32 ms away wakes us earlier, as the servos do; then we look and sleep again. The counter
     and the total have the same low bits. */
  cli();
  OCR1B = (uint16_t)instant;
  TIFR1 = _BV(OCF1B);
  sei();
  for (;;) {
    /* Between the look and the sleep no interrupt may slip through, or its news would be slept over. */
    cli();
    bool done = is_done != 0 && is_done();
    bool due = (int32_t)(clock_now() - instant) >= 0;
    if (done || due) {
      sei();
      return done;
    }
    sleep_enable();
    sei();
    sleep_cpu();
    sleep_disable();
  }
}
