#define SERIATIM_WIDTH 4
#include "scan_loops.h"

SERIATIM_SCAN(kScanPlain, "plain")
