// Stands for NVRTC (libnvrtc.so) beside the stand-in for the driver, which has every kernel in it: what it
// "compiles" is an empty program.
#include <stddef.h>
#include <string.h>

#define API extern "C" __attribute__((visibility("default"))) int

static const char PROGRAM[] = "\x7f" "ELF: nothing, for the stand-in for a card";

API nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
API nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) {
    return *program = (void*)1, 0;
}
API nvrtcDestroyProgram(void** program) { return *program = nullptr, 0; }
API nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
API nvrtcGetCUBINSize(void*, size_t* size) { return *size = sizeof PROGRAM, 0; }
API nvrtcGetCUBIN(void*, char* to) { return memcpy(to, PROGRAM, sizeof PROGRAM), 0; }
API nvrtcGetProgramLogSize(void*, size_t* size) { return *size = 1, 0; }
API nvrtcGetProgramLog(void*, char* to) { return *to = 0, 0; }
