#include "serial.h"

#include <avr/interrupt.h>
#include <avr/io.h>

#include "clock.h"
#include "kit.h"

/* 63 unread bytes in the Arduino core, as a full ring leaves one place empty; two checked lines of one jittery loop would
   not fit into that. */
#if READER_STRICT
#define RECEIVE 128
#else
#define RECEIVE 64
#endif
/* The longest status line fits whole. */
#define TRANSMIT 128

static volatile uint8_t received[RECEIVE], in_head, in_tail;
static volatile uint8_t waiting[TRANSMIT], out_head, out_tail;

ISR(USART_RX_vect) {
  uint8_t byte = UDR0;
  uint8_t next = (in_head + 1) % RECEIVE;
  if (next != in_tail) {
    received[in_head] = byte;
    in_head = next;
  }
}

ISR(USART_UDRE_vect) {
  uint8_t tail = out_tail;
  UDR0 = waiting[tail];
  tail = (tail + 1) % TRANSMIT;
  out_tail = tail;
  if (tail == out_head) UCSR0B &= (uint8_t)~_BV(UDRIE0);
}

void serial_start(void) {
  UCSR0A = _BV(U2X0);
  UBRR0 = (F_CPU / 4 / BAUD - 1) / 2;
  UCSR0C = _BV(UCSZ01) | _BV(UCSZ00);
  UCSR0B = _BV(RXEN0) | _BV(TXEN0) | _BV(RXCIE0);
}

bool serial_has_byte(void) { return in_head != in_tail; }

int16_t serial_peek(void) { return in_head == in_tail ? -1 : received[in_tail]; }

int16_t serial_read(void) {
  int16_t byte = serial_peek();
  if (byte >= 0) in_tail = (in_tail + 1) % RECEIVE;
  return byte;
}

void serial_write(uint8_t byte) {
  uint8_t next = (out_head + 1) % TRANSMIT;
  while (next == out_tail) clock_now(); /* 87 us a byte; the clock has to be asked meanwhile */
  waiting[out_head] = byte;
  out_head = next;
  UCSR0B |= _BV(UDRIE0);
}
