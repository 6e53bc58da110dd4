/* Six potentiometers at A0..A5 and five inputs with pull-ups at pins 2, 4, 7, 8, 12. */
#ifndef INPUTS_H
#define INPUTS_H

#include <stdint.h>

#include "kit.h"

extern uint16_t inputs_pots[POTENTIOMETERS];
extern uint8_t inputs_digitals[DIGITAL_INPUTS];

void inputs_start(void);
void inputs_read(void);

#endif
