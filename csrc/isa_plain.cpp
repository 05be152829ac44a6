#define SERIATIM_WIDTH 4
#include "isa.h"

SERIATIM_TABLE(kPlain, "plain")
