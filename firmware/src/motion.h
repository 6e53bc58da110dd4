/* Where the servos are and where they go. */
#ifndef MOTION_H
#define MOTION_H

#include <stdbool.h>
#include <stdint.h>

#include "kit.h"

/* Angles for the status line: of one loop ago in the plain protocol, of now in the checked one. */
extern int8_t motion_reported[SERVOS];
extern bool motion_is_held;

void motion_start(void);
/* Move every servo by one loop. */
void motion_step(void);
/* Set the targets; beyond the limits they are clamped. */
void motion_set(const int16_t angles_deg[SERVOS]);
/* Plain: one whole degree a loop. Checked: speed, acceleration and silence are limited; the arm stays where it is. A
   start without a known pose takes the pose of the announcement. */
void motion_set_plain(void);
void motion_set_checked(const int16_t pose_deg[SERVOS]);

#endif
