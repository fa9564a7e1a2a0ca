#include "call.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kdgen::engine {

namespace {

// Libraries that would share their work among OpenMP's threads do it alone: how they cut it may
// show in the last bits, and inside a parallel region they have no other threads anyway.
class Alone {
 public:
#ifdef _OPENMP
  Alone() : before_(omp_get_max_threads()) { use_one_thread(); }
  ~Alone() { omp_set_num_threads(before_); }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

 private:
  int before_;
#endif
};

// A task is an image, so that what is computed does not depend on how many there are.
class Caller final : public Step {
 public:
  explicit Caller(const Call& p) : p_(p) {}

  std::int64_t tasks(const Group& group) const override { return group.images; }
  std::int64_t scratch(std::int64_t) const override { return 0; }

  void run(const Group& group, std::int64_t task, char*) const override {
    [[maybe_unused]] const Alone alone;
    p_.compute(at(group, p_.x, task), at(group, p_.y, task));
  }

 private:
  static char* at(const Group& group, const Place& place, std::int64_t image) {
    return group.at[place.id] + image * place.shape.bytes();
  }

  Call p_;
};

}  // namespace

Step* caller(const Call& p) { return new Caller(p); }

void use_one_thread() {
#ifdef _OPENMP
  omp_set_num_threads(1);
#endif
}

}  // namespace kdgen::engine
