#include "emulate_vnni.h"
//
#include "isa_avxvnni.cpp"
