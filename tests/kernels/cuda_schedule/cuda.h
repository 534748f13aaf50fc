// As much of the driver's header as the schedule needs, for a host.
#pragma once

struct alignas(64) CUtensorMap {
  unsigned char opaque[128];
};
