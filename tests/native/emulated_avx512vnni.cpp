#include "emulate_vnni.h"
//
#include "isa_avx512vnni.cpp"
