// A persistent pool: the caller is worker 0, and all workers meet at barriers.
//
// Waiting spins briefly, then sleeps; with more workers than processors it sleeps at once (`spin`
// false), since a spinning worker would hold the processor that another one needs. A barrier that
// took longer than a wake-up halves the worker's next spin, a quick one restores it: beside a busy
// process (whose turn a spinning worker only delays) it soon sleeps at once. Every worker,
// the caller included, computes with one fixed floating-point mode (contracts.md, 4). A forked
// child has no threads: the pool makes new ones at its next run.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace seriatim {

// Round to nearest, subnormals kept, no traps; what was there comes back at the end.
class FloatMode {
 public:
  FloatMode();
  ~FloatMode();
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  uint64_t saved_;
};

// Sets or clears flush-to-zero in the calling thread, as careless libraries do: for tests.
void set_flush_to_zero(bool on);

class Pool {
 public:
  using Job = void (*)(void* argument, int worker);  // must not throw

  Pool(int workers, bool spin);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int workers() const { return workers_; }
  void run(Job job, void* argument);                // in every worker; returns when all have
  void barrier(int worker);                         // called by every worker of a running job
  int64_t* tickets() { return &shared_->tickets; }  // zero after each barrier

 private:
  struct alignas(64) Word {
    std::atomic<uint32_t> value{0};
  };
  struct alignas(64) Patience {
    int64_t nanoseconds;
  };  // how long one worker spins
  struct Shared {
    Word epoch, arrived, phase;  // jobs begun; workers at the barrier; barriers passed
    alignas(64) int64_t tickets = 0;
    bool quit = false;
    Job job = nullptr;
    void* argument = nullptr;
    std::vector<Patience> patience;
  };

  void start();
  void stop();
  void forget();
  void serve(Shared& shared, int worker);
  static void await_change(const Word& word, uint32_t old, int64_t patience);

  const int workers_;
  const bool spin_;
  pid_t owner_ = 0;  // the process that the threads live in
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

}  // namespace seriatim
