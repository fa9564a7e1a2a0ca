// Which instruction set runs: the best this processor has, or the one a test asks for.
#pragma once

#include <string>
#include <vector>

#include "args.h"
#include "engine/engine.h"

namespace kdgen {

const Table& table();

// Its name.
std::string isa();

// The engine of the set of that name, or of the one in force for "". Throws std::invalid_argument
// for a set that this processor does not run.
const engine::Engine& engine_of(const std::string& name);

// Those compiled in that this processor can run, best first.
std::vector<std::string> supported_isas();

// Throws std::invalid_argument when `name` is not among them.
void select_isa(const std::string& name);

}  // namespace kdgen
