#include "program.h"

#include <stdexcept>

namespace kdgen::engine {

std::int64_t Program::packed() const {
  std::int64_t bytes = 0;
  for (const Named& named : steps_) bytes += named.step->packed();
  return bytes;
}

int Program::buffer(const Shape& shape) {
  buffers_.push_back(shape);
  uses_.push_back({});
  return static_cast<int>(buffers_.size()) - 1;
}

Place Program::place(const char* step, int id) const {
  if (id == -1) return {};
  if (id < 0 || id >= static_cast<int>(buffers_.size())) {
    throw std::invalid_argument(std::string(step) + ": buffer is " + std::to_string(id) +
                                "; expected one of " + std::to_string(buffers_.size()) + ".");
  }
  return {id, buffers_[static_cast<std::size_t>(id)]};
}

void Program::check(const std::string& name, std::initializer_list<Place> read,
                    const Place& written) const {
  for (const Place& place : read) {
    if (place && uses_[static_cast<std::size_t>(place.id)].first < 0) {
      throw std::invalid_argument(name + ": buffer " + std::to_string(place.id) +
                                  " is read; expected a step before this one that writes it.");
    }
  }
  if (written && uses_[static_cast<std::size_t>(written.id)].first >= 0) {
    throw std::invalid_argument(name + ": buffer " + std::to_string(written.id) +
                                " is written twice; expected one step.");
  }
}

void Program::add(std::string name, Step* step, std::initializer_list<Place> read,
                  const Place& written, std::int64_t rows) {
  std::unique_ptr<Step> owned(step);
  check(name, read, written);
  const auto now = static_cast<std::int64_t>(steps_.size());
  const std::int64_t work = owned->work();
  steps_.push_back({std::move(name), std::move(owned), written.id});
  for (const Place& place : read) {
    if (place) uses_[static_cast<std::size_t>(place.id)].last = now;
  }
  if (written) uses_[static_cast<std::size_t>(written.id)] = {now, now};
  work_ += work;
  rows_ = std::max(rows_, rows);
  laid_out_ = false;
}

void Program::convolve(std::string name, const Convolve& p) {
  add(std::move(name), engine_.convolve(p), {p.x, p.more, p.residual}, p.y, p.rows);
}

void Program::normalise(std::string name, Normalise p) {
  check(name, {p.x, p.more}, p.y);  // before there are moments of it
  for (const auto& [of, to] : {std::pair(&p.x, &p.x_moments), {&p.more, &p.more_moments}}) {
    if (!*of) continue;
    *to = place("normalise", buffer({1, 2, of->shape.channels, Dtype::float32}));
    add(name + " moments", engine_.moments({*of, *to}), {*of}, *to);
  }
  add(std::move(name), engine_.normalise(p), {p.x, p.more, p.x_moments, p.more_moments}, p.y,
      p.rows);
}

void Program::attend(std::string name, const Attend& p) {
  add(std::move(name), engine_.attend(p), {p.q.place, p.k.place, p.v.place}, p.y);
}

void Program::resample(std::string name, const Resample& p) {
  add(std::move(name), engine_.resample(p), {p.x}, p.y);
}

void Program::combine(std::string name, const Combine& p) {
  add(std::move(name), engine_.combine(p), {p.x, p.more}, p.y, p.rows);
}

void Program::call(std::string name, const Call& p) { add(std::move(name), caller(p), {p.x}, p.y); }

void Program::input(const Ends& p) {
  if (in_) throw std::invalid_argument("input: the program has one already; expected one.");
  add("input", engine_.input(p), {}, p.place);
  in_ = p;
}

void Program::output(const Ends& p) {
  if (out_) throw std::invalid_argument("output: the program has one already; expected one.");
  add("output", engine_.output(p), {p.place}, {});
  out_ = p;
}

}  // namespace kdgen::engine
