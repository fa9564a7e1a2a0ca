#include "step.h"

namespace kdgen::engine {

Step::~Step() = default;

std::int64_t Step::packed() const { return 0; }

std::int64_t Step::work() const { return 0; }

}  // namespace kdgen::engine
