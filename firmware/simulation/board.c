/* An ATmega328P in libsimavr, steered by lines on standard input; time passes only when it is told to.
 *
 *   board firmware.elf
 *   run MICROSECONDS HEX       put bytes on the wire now (at 115200 baud; "-" for none) and run up to an instant
 *                              answers: HEX of what was printed | servo,rise in cycles,width in cycles ...
 *   reset                      pull the reset pin, as opening the port does; answers: ok
 *   pots P1 .. P6              readings 0..1023; answers: ok
 *   digitals D1 .. D5          levels; answers: ok
 *   stack                      answers: deepest stack so far in bytes
 *
 * cc -I/usr/include/simavr board.c -lsimavr -lelf
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "avr_adc.h"
#include "avr_ioport.h"
#include "avr_uart.h"
#include "sim_avr.h"
#include "sim_elf.h"

#define MHZ 16
#define BYTE_CYCLES 1389 /* ten bits at 115200 baud */
#define MOST 2000000

static avr_t *avr;
static uint8_t output[MOST], queue[MOST];
static size_t output_count, queue_start, queue_end;
static avr_cycle_count_t sent_until;
static struct { int servo; avr_cycle_count_t rise, width; } pulses[200000];
static size_t pulse_count;
static avr_cycle_count_t risen[6];
static uint16_t lowest = 0x08ff;
static const struct { char port; int bit; } servos[6] = {{'D', 3}, {'D', 5}, {'D', 6}, {'B', 1}, {'B', 2}, {'B', 3}};
static const struct { char port; int bit; } digitals[5] = {{'D', 2}, {'D', 4}, {'D', 7}, {'B', 0}, {'B', 4}};

static void on_output(struct avr_irq_t *irq, uint32_t value, void *parameter) {
  (void)irq, (void)parameter;
  if (output_count < MOST) output[output_count++] = (uint8_t)value;
}

static void on_servo(struct avr_irq_t *irq, uint32_t value, void *parameter) {
  (void)irq;
  int servo = (int)(intptr_t)parameter;
  if (value) {
    risen[servo] = avr->cycle;
  } else if (risen[servo] && pulse_count < sizeof pulses / sizeof *pulses) {
    pulses[pulse_count].servo = servo;
    pulses[pulse_count].rise = risen[servo];
    pulses[pulse_count++].width = avr->cycle - risen[servo];
    risen[servo] = 0;
  }
}

/* Sleeping costs no time here; who wants real time waits outside. */
static void no_sleep(avr_t *of, avr_cycle_count_t cycles) { (void)of, (void)cycles; }

static avr_cycle_count_t at_the_end(avr_t *of, avr_cycle_count_t when, void *parameter) {
  (void)of, (void)when, (void)parameter;
  return 0;
}

static avr_cycle_count_t next_byte(avr_t *of, avr_cycle_count_t when, void *parameter) {
  (void)parameter;
  avr_raise_irq(avr_io_getirq(of, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_INPUT), queue[queue_start++]);
  sent_until = when;
  if (queue_start == queue_end) {
    queue_start = queue_end = 0;
    return 0;
  }
  return when + BYTE_CYCLES;
}

static void run(double until_us, const char *hex) {
  int was_empty = queue_start == queue_end;
  for (; hex[0] && hex[1] && hex[0] != '-' && queue_end < MOST; hex += 2) {
    unsigned byte;
    sscanf(hex, "%2x", &byte);
    queue[queue_end++] = (uint8_t)byte;
  }
  if (was_empty && queue_start != queue_end) {
    avr_cycle_count_t from = avr->cycle > sent_until ? avr->cycle : sent_until;
    avr_cycle_timer_register(avr, from - avr->cycle + BYTE_CYCLES, next_byte, NULL);
  }
  avr_cycle_count_t until = (avr_cycle_count_t)(until_us * MHZ);
  if (until > avr->cycle) avr_cycle_timer_register(avr, until - avr->cycle, at_the_end, NULL);
  while (avr->cycle < until) {
    int state = avr_run(avr);
    if (state == cpu_Done || state == cpu_Crashed) {
      fprintf(stderr, "board: the processor crashed\n");
      exit(1);
    }
    uint16_t stack = (uint16_t)(avr->data[R_SPL] | avr->data[R_SPH] << 8);
    if (stack > 0x100 && stack < lowest) lowest = stack;
  }
  for (size_t i = 0; i < output_count; i++) printf("%02x", output[i]);
  printf("|");
  for (size_t i = 0; i < pulse_count; i++)
    printf("%d,%llu,%llu ", pulses[i].servo, (unsigned long long)pulses[i].rise, (unsigned long long)pulses[i].width);
  printf("\n");
  output_count = pulse_count = 0;
}

/* As pulls from outside: what drives a pin alone is undone when the firmware writes the pull-ups of its port. */
static void set_digitals(const int levels[5]) {
  for (const char *port = "DB"; *port; port++) {
    avr_ioport_external_t outside = {.name = (unsigned long)*port};
    for (int i = 0; i < 5; i++) {
      if (digitals[i].port != *port) continue;
      outside.mask |= 1u << digitals[i].bit;
      outside.value |= (unsigned)levels[i] << digitals[i].bit;
    }
    avr_ioctl(avr, AVR_IOCTL_IOPORT_SET_EXTERNAL(*port), &outside);
  }
  for (int i = 0; i < 5; i++) {
    /* Told twice, as only a change is heard, and a reset has cleared the register of the pins. */
    avr_irq_t *pin = avr_io_getirq(avr, AVR_IOCTL_IOPORT_GETIRQ(digitals[i].port), digitals[i].bit);
    avr_raise_irq(pin, !levels[i]);
    avr_raise_irq(pin, (uint32_t)levels[i]);
  }
}

static void set_pot(int i, int reading) {
  /* Half a step up, so that the conversion, which cuts, gives the reading. */
  avr_raise_irq(avr_io_getirq(avr, AVR_IOCTL_ADC_GETIRQ, ADC_IRQ_ADC0 + i), (uint32_t)((reading * 5000 + 2500) / 1023));
}

int main(int count, char **arguments) {
  /* The library prints its notes on standard output, which is for answers alone. */
  int answers = dup(1);
  dup2(2, 1);
  elf_firmware_t firmware;
  memset(&firmware, 0, sizeof firmware);
  if (count != 2 || elf_read_firmware(arguments[1], &firmware) != 0) {
    fprintf(stderr, "board: expected the path of a firmware.elf\n");
    return 2;
  }
  avr = avr_make_mcu_by_name("atmega328p");
  avr_init(avr);
  avr->log = LOG_ERROR;
  firmware.frequency = MHZ * 1000000;
  avr_load_firmware(avr, &firmware);
  avr->vcc = avr->avcc = avr->aref = 5000;
  avr->sleep = no_sleep;
  uint32_t flags = 0;
  avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
  avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUTPUT), on_output, NULL);
  for (int i = 0; i < 6; i++)
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_IOPORT_GETIRQ(servos[i].port), servos[i].bit), on_servo,
                            (void *)(intptr_t)i);
  int levels[5] = {1, 1, 1, 1, 1};
  set_digitals(levels);
  for (int i = 0; i < 6; i++) set_pot(i, 512);

  fflush(stdout);
  dup2(answers, 1);
  static char line[2 * MOST + 64];
  static char hex[2 * MOST + 2];
  while (fgets(line, sizeof line, stdin)) {
    double until;
    int v[6];
    if (sscanf(line, "run %lf %s", &until, hex) == 2) {
      run(until, hex);
    } else if (strncmp(line, "reset", 5) == 0) {
      avr_reset(avr);
      queue_start = queue_end = 0;
      avr_cycle_timer_cancel(avr, next_byte, NULL);
      memset(risen, 0, sizeof risen);
      set_digitals(levels);
      printf("ok\n");
    } else if (sscanf(line, "pots %d %d %d %d %d %d", v, v + 1, v + 2, v + 3, v + 4, v + 5) == 6) {
      for (int i = 0; i < 6; i++) set_pot(i, v[i]);
      printf("ok\n");
    } else if (sscanf(line, "digitals %d %d %d %d %d", v, v + 1, v + 2, v + 3, v + 4) == 5) {
      memcpy(levels, v, sizeof levels);
      set_digitals(levels);
      printf("ok\n");
    } else if (strncmp(line, "stack", 5) == 0) {
      printf("%d\n", 0x08ff - lowest);
    } else {
      fprintf(stderr, "board: not understood: %s", line);
      return 2;
    }
    fflush(stdout);
  }
  return 0;
}
