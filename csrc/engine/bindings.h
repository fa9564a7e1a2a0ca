#pragma once

#include <pybind11/pybind11.h>

namespace kdgen::engine {

// Adds `Program` to kdgen._native.
void bind(pybind11::module_& m);

}  // namespace kdgen::engine
