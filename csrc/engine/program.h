// A network as steps over buffers, in the order in which they run.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "call.h"
#include "engine.h"
#include "failure.h"
#include "pages.h"

namespace kdgen::engine {

class Program {
 public:
  // `guarded`: before a step runs, the buffer it writes is filled with NaN and its surroundings are
  // marked; a step that writes there is found.
  Program(const Engine& engine, bool guarded) : engine_(engine), guarded_(guarded) {}

  const Engine& engine() const { return engine_; }
  std::int64_t packed() const;

  int buffer(const Shape& shape);
  // The buffer as a step sees it; none for -1. Throws std::invalid_argument for others.
  Place place(const char* step, int id) const;

  void convolve(std::string name, const Convolve& p);
  void normalise(std::string name, Normalise p);
  void attend(std::string name, const Attend& p);
  void resample(std::string name, const Resample& p);
  void combine(std::string name, const Combine& p);
  void call(std::string name, const Call& p);
  void input(const Ends& p);
  void output(const Ends& p);

  // Throws std::runtime_error when a guarded band was written, and what a call threw first: what is
  // left to do then is not done.
  void run(const float* images, const std::int32_t* rows, float* out, std::int64_t n, int threads);
  // Seconds of every step, on one thread.
  std::vector<std::pair<std::string, double>> profile(const float* images, const std::int32_t* rows,
                                                      float* out, std::int64_t n);
  std::int64_t workspace(std::int64_t n, int threads);
  // Of the largest table.
  std::int64_t rows() const { return rows_; }
  // Whether it has its input and its output.
  bool complete() const { return in_ && out_; }

 private:
  struct Named {
    std::string name;
    std::unique_ptr<Step> step;
    int written;  // a buffer, or -1
  };
  struct Use {
    std::int64_t first = -1, last = -1;
  };
  // How a run is cut: groups of images, each with all threads or with one.
  struct Cut {
    std::int64_t images, groups;
    int together, apart;  // threads on one group; groups at once
  };
  // What lies around a buffer and belongs to nobody.
  struct Surroundings {
    char* front;
    std::int64_t before, bytes;  // bytes of the buffer itself
    char* back;
    std::int64_t behind;
  };
  struct Batch {
    const float* images;
    const std::int32_t* rows;
    float* out;
    std::int64_t n;
  };

  // Throws std::invalid_argument where a buffer is read before it is written, or written twice.
  void check(const std::string& name, std::initializer_list<Place> read,
             const Place& written) const;
  // Nothing is changed where it throws; `rows` are those of the step's tables.
  void add(std::string name, Step* step, std::initializer_list<Place> read, const Place& written,
           std::int64_t rows = 1);
  Cut cut(std::int64_t n, int threads) const;
  void lay_out();
  std::int64_t room(std::int64_t images) const;
  std::int64_t scratch(std::int64_t images) const;
  void reserve(const Cut& cut);
  // One group in its own part of the arena.
  Group group(const Batch& batch, const Cut& cut, std::int64_t number, int worker,
              std::vector<char*>& at) const;
  void apart(const Batch& batch, const Cut& cut, Failure& failure) const;
  void together(const Batch& batch, const Cut& cut, Failure& failure) const;
  void before(std::size_t step, const Group& group) const;
  void after(std::size_t step, const Group& group) const;
  // Calls with where each buffer lies, its bands included, and its bytes.
  void for_all(const Group& group, void (*f)(const char*, std::int64_t)) const;
  Surroundings surroundings(int id, const Group& group) const;
  std::int64_t band() const;
  void refuse_broken();

  const Engine& engine_;
  bool guarded_;
  std::vector<Shape> buffers_;
  std::vector<Use> uses_;
  std::vector<Named> steps_;
  std::optional<Ends> in_, out_;
  std::int64_t rows_ = 1;
  std::int64_t work_ = 0;  // multiply-adds for one image
  Layout layout_;
  bool laid_out_ = false;
  Pages arena_, scratch_;
  mutable std::atomic<int> broken_{-1};  // the step that wrote where it must not
  std::mutex running_;                   // the arena serves one run at a time
};

}  // namespace kdgen::engine
