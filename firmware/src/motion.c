#include "motion.h"

#include <avr/io.h>
#include <util/crc16.h>

#include "clock.h"
#include "servo.h"

/* 256ths of a degree per loop, and per loop squared. */
#define MAX_SPEED ((uint16_t)(MAX_SPEED_DEG_S * 256LL * LOOP_US / 1000000LL))
#define MAX_GAIN ((uint32_t)(MAX_ACCELERATION_DEG_S2 * 256LL * LOOP_US * LOOP_US / 1000000000000LL))
#define WATCHDOG_TICKS (WATCHDOG_MS * TICKS_PER_MS - LOOP_US * TICKS_PER_US)

int8_t motion_reported[SERVOS];
bool motion_is_held;

static int8_t target[SERVOS];
static int16_t position[SERVOS]; /* in 256ths of a degree */
static uint16_t speed[SERVOS];
static int8_t heading[SERVOS];
static bool is_checked, is_resting;
static uint32_t heard;

/* The pose survives a reset that leaves the power on, as opening the port makes one: the arm stays where it is. */
static struct {
  int8_t pose[SERVOS];
  uint16_t sum;
} kept __attribute__((section(".noinit")));

static uint16_t sum_of(const int8_t pose[SERVOS]) {
  uint16_t sum = 0x5a3c;
  for (uint8_t i = 0; i < SERVOS; i++) sum = _crc_xmodem_update(sum, (uint8_t)pose[i]);
  return sum;
}

static int8_t whole(int16_t angle_256) { return (int8_t)((angle_256 + 128) >> 8); }

static void place(uint8_t i, int8_t angle_deg) {
  target[i] = motion_reported[i] = angle_deg;
  position[i] = (int16_t)(angle_deg * 256);
  speed[i] = 0;
}

void motion_start(void) {
#if READER_STRICT
  bool is_known = kept.sum == sum_of(kept.pose);
  for (uint8_t i = 0; i < SERVOS; i++) is_known &= kept.pose[i] >= -LIMIT_DEG && kept.pose[i] <= LIMIT_DEG;
  for (uint8_t i = 0; i < SERVOS; i++) place(i, is_known ? kept.pose[i] : 0);
  is_resting = !is_known;
#else
  for (uint8_t i = 0; i < SERVOS; i++) place(i, 0);
#endif
  for (uint8_t i = 0; i < SERVOS; i++) servo_write(i, position[i]);
  if (!is_resting) servo_enable();
}

static uint16_t root(uint32_t value) {
  uint32_t result = 0;
  for (uint32_t bit = 1UL << 30; bit != 0; bit >>= 2) {
    if (value >= result + bit) {
      value -= result + bit;
      result = (result >> 1) + bit;
    } else {
      result >>= 1;
    }
  }
  return (uint16_t)result;
}

/* One loop with limited speed and acceleration. What has to stop stops at once; only getting faster takes its time,
   and a target that is known ahead is approached along a parabola. */
static void step_smoothly(uint8_t i) {
  int32_t way = (int32_t)target[i] * 256 - position[i];
  if (way == 0) {
    speed[i] = 0;
    return;
  }
  int8_t towards = way > 0 ? 1 : -1;
  uint32_t distance = (uint32_t)(way > 0 ? way : -way);
  if (heading[i] != towards) speed[i] = 0;
  heading[i] = towards;
  /* The largest speed from which steps that shrink by MAX_GAIN end at the target. */
  uint32_t gain = MAX_GAIN;
  uint16_t most = (uint16_t)((root(gain * gain + 8 * gain * distance) - gain) / 2);
  if (most < 1) most = 1;
  if (most > MAX_SPEED) most = MAX_SPEED;
  uint16_t next = (uint16_t)(speed[i] + gain);
  speed[i] = next < most ? next : most;
  position[i] = (int16_t)(position[i] + towards * (int16_t)(speed[i] < distance ? speed[i] : distance));
}

static void step_plainly(uint8_t i) {
  int8_t now = whole(position[i]);
  if (now < target[i]) now++;
  else if (now > target[i]) now--;
  position[i] = (int16_t)(now * 256);
}

void motion_step(void) {
  if (is_checked && !motion_is_held && clock_now() - heard > WATCHDOG_TICKS) {
    motion_is_held = true;
    for (uint8_t i = 0; i < SERVOS; i++) target[i] = whole(position[i]);
  }
  for (uint8_t i = 0; i < SERVOS; i++) {
    if (!is_checked) motion_reported[i] = whole(position[i]);
    if (is_checked) step_smoothly(i);
    else step_plainly(i);
    if (is_checked) motion_reported[i] = whole(position[i]);
    servo_write(i, position[i]);
    kept.pose[i] = whole(position[i]);
  }
  kept.sum = is_resting ? 0 : sum_of(kept.pose);
}

static void wake(void) {
  if (!is_resting) return;
  is_resting = false;
  servo_enable();
}

static int8_t clamp(int16_t angle_deg) {
  if (angle_deg > LIMIT_DEG) return LIMIT_DEG;
  if (angle_deg < -LIMIT_DEG) return -LIMIT_DEG;
  return (int8_t)angle_deg;
}

void motion_set(const int16_t angles_deg[SERVOS]) {
  wake();
  heard = clock_now();
  motion_is_held = false;
  for (uint8_t i = 0; i < SERVOS; i++) target[i] = clamp(angles_deg[i]);
}

void motion_set_plain(void) {
  if (!is_checked) return;
  is_checked = motion_is_held = false;
  for (uint8_t i = 0; i < SERVOS; i++) place(i, whole(position[i]));
}

void motion_set_checked(const int16_t pose_deg[SERVOS]) {
  for (uint8_t i = 0; i < SERVOS; i++) place(i, is_resting ? clamp(pose_deg[i]) : whole(position[i]));
  wake();
  heard = clock_now();
  is_checked = true;
  motion_is_held = false;
}
