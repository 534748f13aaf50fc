// Stands for AMD's management library: starting it does what STUB_AMDSMI says.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int garbage;

int amdsmi_init(unsigned long long flags) {
  const char* how = getenv("STUB_AMDSMI") ? getenv("STUB_AMDSMI") : "0";
  if (strcmp(how, "hang") == 0)
    for (;;) pause();
  if (strcmp(how, "late") == 0) sleep(2);
  if (strcmp(how, "crash") == 0) raise(SIGSEGV);
  garbage = strcmp(how, "garbage") == 0;
  return atoi(how);
}

int amdsmi_market_name(unsigned number, char* out, unsigned size) {
  strncpy(out, garbage ? "\xff\xfe\t\n" : "AMD Instinct MI300X", size);
  return 0;
}
