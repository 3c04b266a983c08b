// The path `avxvnni` as CPUs can run it that have AVX-512 alone.
#define HEADRACE_EVEX
#include "path_avxvnni.cpp"
