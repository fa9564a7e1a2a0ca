// How a program runs: groups of images, threads, and the memory that they work in.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "guard.h"
#include "program.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kdgen::engine {

namespace {

constexpr std::int64_t kTogether = 8;  // images of a group: they share one pass over the weights
constexpr std::int64_t kLine = 64;
// Multiply-adds that one thread does in about half a millisecond. With fewer, waiting for another
// at every step costs more than it brings.
constexpr std::int64_t kWorth = std::int64_t{20} << 20;

std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t in_lines(std::int64_t bytes) { return divided_up(bytes, kLine) * kLine; }

int worker_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace

// As many threads as images, or nearly a multiple: each takes groups of images through the whole
// network, which spares the waiting between steps. Else all threads share the tasks of every step.
Program::Cut Program::cut(std::int64_t n, int threads) const {
  const bool little = n < kWorth / std::max(work_, std::int64_t{1});
  if (!guarded_ && little) threads = 1;  // tests are small, and about threads too
  if (threads > 1 && (n < threads || (n % threads != 0 && n < 4 * threads))) {
    const std::int64_t groups = divided_up(n, kTogether);
    return {divided_up(n, groups), groups, threads, 1};
  }
  const std::int64_t groups = divided_up(divided_up(n, kTogether), threads) * threads;
  const std::int64_t images = divided_up(n, groups);
  return {images, divided_up(n, images), 1, threads};
}

void Program::lay_out() {
  if (laid_out_) return;
  std::vector<Life> lives;
  for (std::size_t k = 0; k < buffers_.size(); ++k) {
    lives.push_back({in_lines(buffers_[k].bytes()) + 2 * band(), uses_[k].first, uses_[k].last});
  }
  layout_ = engine::laid_out(lives);
  laid_out_ = true;
}

std::int64_t Program::room(std::int64_t images) const { return in_lines(layout_.bytes * images); }

std::int64_t Program::scratch(std::int64_t images) const {
  std::int64_t most = 0;
  for (const Named& named : steps_) most = std::max(most, named.step->scratch(images));
  return in_lines(most) + kLine + band();
}

void Program::reserve(const Cut& cut) {
  const std::int64_t arena = room(cut.images) * cut.apart;
  const std::int64_t work = scratch(cut.images) * cut.apart * cut.together;
  if (arena > arena_.bytes()) {
    arena_ = Pages();
    arena_ = Pages(arena);
  }
  if (work > scratch_.bytes()) {
    scratch_ = Pages();
    scratch_ = Pages(work);
  }
}

std::int64_t Program::workspace(std::int64_t n, int threads) {
  const std::lock_guard<std::mutex> alone(running_);
  lay_out();
  if (n <= 0) return 0;
  const Cut cut = this->cut(n, threads);
  return room(cut.images) * cut.apart + scratch(cut.images) * cut.apart * cut.together;
}

Group Program::group(const Batch& batch, const Cut& cut, std::int64_t number, int worker,
                     std::vector<char*>& at) const {
  const std::int64_t first = number * cut.images;
  const std::int64_t images = std::min(cut.images, batch.n - first);
  at.resize(buffers_.size());
  for (std::size_t k = 0; k < at.size(); ++k) {
    at[k] = arena_.as<char>() + room(cut.images) * worker + (layout_.offsets[k] + band()) * images;
  }
  return {at.data(),
          images,
          batch.rows ? batch.rows + first : nullptr,
          batch.images + first * in_->place.shape.pixels() * in_->channels,
          batch.out + first * out_->place.shape.pixels() * out_->channels,
          cut.together};
}

void Program::apart(const Batch& batch, const Cut& cut, Failure& failure) const {
  const std::int64_t room = scratch(cut.images);
  // Allocated here: an exception must not leave the loop below.
  std::vector<std::vector<char*>> places(static_cast<std::size_t>(cut.apart),
                                         std::vector<char*>(buffers_.size()));
#ifdef _OPENMP
#pragma omp parallel for num_threads(cut.apart) schedule(dynamic, 1) if (cut.apart > 1)
#endif
  for (std::int64_t number = 0; number < cut.groups; ++number) {
    std::vector<char*>& at = places[static_cast<std::size_t>(worker_number())];
    const Group group = this->group(batch, cut, number, worker_number(), at);
    char* own = scratch_.as<char>() + room * worker_number();
    for (std::size_t k = 0; k < steps_.size(); ++k) {
      const Step& step = *steps_[k].step;
      const std::int64_t needed = step.scratch(cut.images), tasks = step.tasks(group);
      before(k, group);
      if (guarded_) mark(own + needed, room - needed);
      close(own + needed, room - needed);
      for (std::int64_t task = 0; task < tasks; ++task) {
        failure.attempt([&] { step.run(group, task, own); });
      }
      open(own, room);
      if (guarded_ && !marked(own + needed, room - needed)) broken_ = static_cast<int>(k);
      after(k, group);
    }
  }
}

void Program::together(const Batch& batch, const Cut& cut, Failure& failure) const {
  const std::int64_t room = scratch(cut.images);
  for (std::int64_t number = 0; number < cut.groups; ++number) {
    std::vector<char*> at;
    const Group group = this->group(batch, cut, number, 0, at);
#ifdef _OPENMP
#pragma omp parallel num_threads(cut.together)
#endif
    for (std::size_t k = 0; k < steps_.size(); ++k) {
      char* own = scratch_.as<char>() + room * worker_number();
      const Step& step = *steps_[k].step;
      const std::int64_t needed = step.scratch(cut.images), tasks = step.tasks(group);
      if (guarded_) {
#ifdef _OPENMP
#pragma omp single
#endif
        before(k, group);
        mark(own + needed, room - needed);
      }
      close(own + needed, room - needed);
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
      for (std::int64_t task = 0; task < tasks; ++task) {
        failure.attempt([&] { step.run(group, task, own); });
      }
      open(own, room);
      if (guarded_) {
        if (!marked(own + needed, room - needed)) broken_ = static_cast<int>(k);
#ifdef _OPENMP
#pragma omp single
#endif
        after(k, group);
      }
    }
  }
}

void Program::run(const float* images, const std::int32_t* rows, float* out, std::int64_t n,
                  int threads) {
  if (n <= 0) return;
  const std::lock_guard<std::mutex> alone(running_);
  lay_out();
  const Cut cut = this->cut(n, threads);
  reserve(cut);
  const Batch batch = {images, rows, out, n};
  Failure failure;
  if (cut.together > 1) {
    together(batch, cut, failure);
  } else {
    apart(batch, cut, failure);
  }
  failure.rethrow();
  refuse_broken();
}

std::vector<std::pair<std::string, double>> Program::profile(const float* images,
                                                             const std::int32_t* rows, float* out,
                                                             std::int64_t n) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::pair<std::string, double>> seconds;
  const std::lock_guard<std::mutex> alone(running_);
  lay_out();
  const Cut cut = this->cut(std::max(n, std::int64_t{1}), 1);
  reserve(cut);
  for (const Named& named : steps_) seconds.emplace_back(named.name, 0.0);
  for (std::int64_t number = 0; number < (n > 0 ? cut.groups : 0); ++number) {
    std::vector<char*> at;
    const Group group = this->group({images, rows, out, n}, cut, number, 0, at);
    for (std::size_t k = 0; k < steps_.size(); ++k) {
      const auto begun = Clock::now();
      const std::int64_t tasks = steps_[k].step->tasks(group);
      for (std::int64_t task = 0; task < tasks; ++task) {
        steps_[k].step->run(group, task, scratch_.as<char>());
      }
      seconds[k].second += std::chrono::duration<double>(Clock::now() - begun).count();
    }
  }
  return seconds;
}

// ---- guarding ---------------------------------------------------------------------------------

std::int64_t Program::band() const { return guarded_ ? kBand : 0; }

void Program::before(std::size_t step, const Group& group) const {
  if (!guarded_) return;
  if (const int id = steps_[step].written; id >= 0) {
    const Surroundings around = surroundings(id, group);
    mark(around.front, around.before);
    std::memset(group.at[id], 0xff, static_cast<std::size_t>(around.bytes));  // NaN in every dtype
    mark(around.back, around.behind);
  }
  for_all(group, close);
  for (std::size_t k = 0; k < buffers_.size(); ++k) {
    const auto now = static_cast<std::int64_t>(step);
    if (uses_[k].first <= now && now <= uses_[k].last) {
      open(group.at[k], buffers_[k].bytes() * group.images);
    }
  }
}

void Program::after(std::size_t step, const Group& group) const {
  if (!guarded_) return;
  for_all(group, open);
  const int id = steps_[step].written;
  if (id < 0) return;
  const Surroundings around = surroundings(id, group);
  if (!marked(around.front, around.before) || !marked(around.back, around.behind)) {
    broken_ = static_cast<int>(step);
  }
}

// From the last image's last value on, not from the next cache line.
Program::Surroundings Program::surroundings(int id, const Group& group) const {
  const std::int64_t own = buffers_[static_cast<std::size_t>(id)].bytes();
  const std::int64_t width = band() * group.images, bytes = own * group.images;
  return {group.at[id] - width, width, bytes, group.at[id] + bytes,
          (in_lines(own) - own) * group.images + width};
}

void Program::for_all(const Group& group, void (*f)(const char*, std::int64_t)) const {
  for (std::size_t k = 0; k < buffers_.size(); ++k) {
    f(group.at[k] - band() * group.images,
      (in_lines(buffers_[k].bytes()) + 2 * band()) * group.images);
  }
}

void Program::refuse_broken() {
  const int step = broken_.exchange(-1);
  if (step < 0) return;
  throw std::runtime_error(steps_[static_cast<std::size_t>(step)].name +
                           ": wrote outside its buffer.");
}

}  // namespace kdgen::engine
