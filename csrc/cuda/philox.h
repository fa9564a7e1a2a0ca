// Random numbers by address on a GPU.
#pragma once

#include "queue.h"

namespace kdgen {
namespace cuda {

void philox(const Philox&, const Queue&);

}  // namespace cuda
}  // namespace kdgen
