#define SERIATIM_WIDTH 16
#include "scan_loops.h"

SERIATIM_SCAN(kScanAvx512, "avx512")
