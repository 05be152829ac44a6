#define SERIATIM_WIDTH 8
#include "scan_loops.h"

SERIATIM_SCAN(kScanAvx2, "avx2")
