#define SERIATIM_WIDTH 4
#define SERIATIM_DOT 3
#include "isa_products.h"

SERIATIM_PRODUCTS(kNeon, "neon", kPlain)
