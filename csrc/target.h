// The sources of the ops are compiled once per instruction set, each time under another namespace.
#pragma once

#ifndef KDGEN_TARGET
#error "KDGEN_TARGET names the instruction set this file is compiled for; CMakeLists.txt sets it"
#endif

#define KDGEN_BEGIN \
  namespace kdgen { \
  namespace KDGEN_TARGET {
#define KDGEN_END \
  }               \
  }
