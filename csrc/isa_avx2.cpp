#define SERIATIM_WIDTH 8
#define SERIATIM_DOT 1
#include "isa.h"

SERIATIM_TABLE(kAvx2, "avx2")
