#define SERIATIM_WIDTH 16
#include "isa.h"

SERIATIM_TABLE(kAvx512, "avx512")
