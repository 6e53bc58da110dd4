#include "inputs.h"

#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>

/* Wakes the processor at the end of a conversion; that is all. */
EMPTY_INTERRUPT(ADC_vect)

uint16_t inputs_pots[POTENTIOMETERS];
uint8_t inputs_digitals[DIGITAL_INPUTS];

void inputs_start(void) {
  PORTD |= _BV(2) | _BV(4) | _BV(7);
  PORTB |= _BV(0) | _BV(4);
  /* 16 MHz / 128 = 125 kHz: ten bits need at most 200 kHz. One conversion takes 104 us. */
  ADCSRA = _BV(ADEN) | _BV(ADPS2) | _BV(ADPS1) | _BV(ADPS0);
}

void inputs_read(void) {
  for (uint8_t i = 0; i < POTENTIOMETERS; i++) {
    ADMUX = _BV(REFS0) | i;
    ADCSRA |= _BV(ADSC) | _BV(ADIE);
    cli();
    while (ADCSRA & _BV(ADSC)) {
      sleep_enable();
      sei();
      sleep_cpu();
      sleep_disable();
      cli();
    }
    sei();
    inputs_pots[i] = ADC;
  }
  uint8_t d = PIND, b = PINB;
  inputs_digitals[0] = (d >> 2) & 1;
  inputs_digitals[1] = (d >> 4) & 1;
  inputs_digitals[2] = (d >> 7) & 1;
  inputs_digitals[3] = b & 1;
  inputs_digitals[4] = (b >> 4) & 1;
}
