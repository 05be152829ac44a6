#define SERIATIM_WIDTH 4
#define SERIATIM_DOT 0
#include "isa.h"

SERIATIM_TABLE(kPlain, "plain")
