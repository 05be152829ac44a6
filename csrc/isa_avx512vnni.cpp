#define SERIATIM_WIDTH 16
#define SERIATIM_DOT 2
#include "isa_products.h"

SERIATIM_PRODUCTS(kAvx512Vnni, "avx512vnni", kAvx512)
