/* The published firmware's way of reading, with the real Arduino core: it decides what the emulator's table says.
 *
 * Our own sketch for the numbers alone: no servos. One loop reads six integers with Stream::parseInt if a byte is there,
 * takes them if the next byte is a line feed, moves each angle by one degree, prints a status line, waits 10 ms. */
#include <Arduino.h>

/* What the core's abi.cpp gives; that file does not compile with the avr-gcc of Debian. */
extern "C" void __cxa_pure_virtual() {
  for (;;) {
  }
}

static int target[6], current[6];

void setup() { Serial.begin(115200); }

void loop() {
  int reported[6];
  for (int i = 0; i < 6; i++) {
    reported[i] = current[i];
    const int wanted = constrain(target[i], -90, 90);
    current[i] += constrain(wanted - current[i], -1, 1);
  }
  if (Serial.available()) {
    int values[6];
    for (int i = 0; i < 6; i++) values[i] = Serial.parseInt();
    if (Serial.read() == '\n') memcpy(target, values, sizeof target);
  }
  Serial.print("6 ");
  for (int i = 0; i < 6; i++) {
    Serial.print(reported[i]);
    Serial.print(' ');
  }
  Serial.print("6 512 512 512 512 512 512 5 1 1 1 1 1 UMI\r\n");
  delay(10);
}
