#include "servo.h"

#include <avr/interrupt.h>
#include <avr/io.h>
#include <stdbool.h>

#include "kit.h"

/* Pins 3, 5, 6 are PD3, PD5, PD6; pins 9, 10, 11 are PB1, PB2, PB3. */
static const uint8_t pin_d[SERVOS] = {_BV(3), _BV(5), _BV(6), 0, 0, 0};
static const uint8_t pin_b[SERVOS] = {0, 0, 0, _BV(1), _BV(2), _BV(3)};
#define PINS_D (_BV(3) | _BV(5) | _BV(6))
#define PINS_B (_BV(1) | _BV(2) | _BV(3))

/* The interrupt comes this many ticks before its edge and waits for it, so that a serial interrupt or a short locked
   section before it does not move the edge. */
#define LEAD 16

static volatile uint16_t width[SERVOS];
static volatile bool is_enabled;
static uint16_t edge, frame;
static uint8_t slot;
static uint8_t rest_d, rest_b;

ISR(TIMER1_COMPA_vect) {
  /* Whole ports are written, in the same number of cycles on every edge; nobody else writes them after the start. */
  uint8_t next_d = rest_d, next_b = rest_b;
  uint8_t now = slot;
  if (now < SERVOS && is_enabled) {
    next_d |= pin_d[now];
    next_b |= pin_b[now];
  }
  while ((int16_t)(TCNT1 - edge) < 0) {
  }
  PORTD = next_d;
  PORTB = next_b;
  if (now == 0) frame = edge;
  if (now < SERVOS) {
    edge += width[now];
    slot = now + 1;
  } else {
    edge = frame + (uint16_t)(FRAME_US * TICKS_PER_US);
    slot = 0;
  }
  OCR1A = edge - LEAD;
}

void servo_start(void) {
  DDRD |= PINS_D;
  DDRB |= PINS_B;
  rest_d = PORTD & (uint8_t)~PINS_D;
  rest_b = PORTB & (uint8_t)~PINS_B;
  for (uint8_t i = 0; i < SERVOS; i++) servo_write(i, 0);
  edge = TCNT1 + 2000;
  OCR1A = edge - LEAD;
  TIFR1 = _BV(OCF1A);
  TIMSK1 |= _BV(OCIE1A);
}

void servo_enable(void) { is_enabled = true; }

void servo_write(uint8_t joint, int16_t angle_256) {
  /* Whole microseconds at whole degrees, rounded down as the Arduino Servo library does; half ones in between. */
  uint32_t from_min = (uint32_t)((int32_t)angle_256 + LIMIT_DEG * 256L);
  uint16_t ticks;
  if ((angle_256 & 0xff) == 0) {
    ticks = (uint16_t)(((from_min >> 8) * (PULSE_MAX_US - PULSE_MIN_US) / (2 * LIMIT_DEG) + PULSE_MIN_US) * TICKS_PER_US);
  } else {
    ticks = (uint16_t)((from_min * ((PULSE_MAX_US - PULSE_MIN_US) * TICKS_PER_US) / (2UL * LIMIT_DEG)) >> 8) +
            PULSE_MIN_US * TICKS_PER_US;
  }
  uint8_t state = SREG;
  cli();
  width[joint] = ticks;
  SREG = state;
}
