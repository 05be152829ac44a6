#define SERIATIM_WIDTH 8
#define SERIATIM_DOT 2
#include "isa_products.h"

SERIATIM_PRODUCTS(kAvxVnni, "avxvnni", kAvx2)
