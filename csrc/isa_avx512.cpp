#define SERIATIM_WIDTH 16
#define SERIATIM_DOT 1
#include "isa.h"

SERIATIM_TABLE(kAvx512, "avx512")
