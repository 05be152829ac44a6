#define SERIATIM_WIDTH 8
#include "isa.h"

SERIATIM_TABLE(kAvx2, "avx2")
