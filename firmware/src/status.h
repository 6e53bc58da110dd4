/* The status line. */
#ifndef STATUS_H
#define STATUS_H

void status_print(void);

#endif
