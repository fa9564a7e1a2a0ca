// Which instruction set runs: the best this processor has, or the one a test asks for.
#pragma once

#include <string>
#include <vector>

#include "args.h"

namespace kdgen {

const Table& table();

// Those compiled in that this processor can run, best first.
std::vector<std::string> supported_isas();

// Throws std::invalid_argument when `name` is not among them.
void select_isa(const std::string& name);

}  // namespace kdgen
