#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace seriatim {
namespace {

#if defined(__x86_64__)
constexpr uint64_t kDefaultMode = 0x1f80, kFlush = 0x8040;  // FTZ and DAZ
uint64_t get_mode() { return _mm_getcsr(); }
void set_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
void relax() { _mm_pause(); }
#elif defined(__aarch64__)
constexpr uint64_t kDefaultMode = 0, kFlush = 1 << 24;
uint64_t get_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
void relax() { asm volatile("yield"); }
#else
constexpr uint64_t kDefaultMode = 0, kFlush = 0;
uint64_t get_mode() { return 0; }
void set_mode(uint64_t) {}
void relax() {}
#endif

// Nanoseconds. A wait is worth spinning for if it ends within the time that a sleeper takes to
// wake.
constexpr int64_t kMostPatience = 50'000, kLeastPatience = 500, kLong = 100'000;
constexpr int64_t kBetweenSteps = 6;  // times as patient: the caller samples and makes a batch

int64_t now() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

FloatMode::FloatMode() : saved_(get_mode()) { set_mode(kDefaultMode); }
FloatMode::~FloatMode() { set_mode(saved_); }

void set_flush_to_zero(bool on) { set_mode(on ? get_mode() | kFlush : get_mode() & ~kFlush); }

Pool::Pool(int workers, bool spin) : workers_(workers), spin_(spin) { start(); }

Pool::~Pool() { owner_ == getpid() ? stop() : forget(); }

void Pool::stop() {
  shared_->quit = true;
  shared_->epoch.value.fetch_add(1, std::memory_order_release);
  shared_->epoch.value.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

// Signals are for the caller's thread: Python's handlers run there.
void Pool::start() {
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  shared_ = std::make_unique<Shared>();
  shared_->patience.assign(workers_, {spin_ ? kMostPatience : 0});
  owner_ = getpid();
  try {
    for (int i = 1; i < workers_; ++i)
      threads_.emplace_back([this, i, shared = shared_.get()] { serve(*shared, i); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    stop();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// In a forked child: threads that are not there can be neither joined nor destroyed, so they and
// what they point to are left behind.
void Pool::forget() {
  new std::vector<std::thread>(std::move(threads_));
  threads_.clear();
  static_cast<void>(shared_.release());
}

void Pool::run(Job job, void* argument) {
  if (owner_ != getpid()) {
    forget();
    start();
  }
  shared_->job = job;
  shared_->argument = argument;
  if (workers_ > 1) {
    shared_->epoch.value.fetch_add(1, std::memory_order_release);
    shared_->epoch.value.notify_all();
  }
  FloatMode mode;
  job(argument, 0);
  barrier(0);
}

void Pool::serve(Shared& shared, int worker) {
  FloatMode mode;
  for (uint32_t seen = 0;; ++seen) {
    await_change(shared.epoch, seen, kBetweenSteps * shared.patience[worker].nanoseconds);
    if (shared.quit) return;
    shared.job(shared.argument, worker);
    barrier(worker);
  }
}

void Pool::barrier(int worker) {
  if (workers_ == 1) return;
  Shared& shared = *shared_;
  const uint32_t phase = shared.phase.value.load(std::memory_order_acquire);
  const uint32_t last = static_cast<uint32_t>(workers_ - 1);
  if (shared.arrived.value.fetch_add(1, std::memory_order_acq_rel) == last) {
    shared.arrived.value.store(0, std::memory_order_relaxed);
    __atomic_store_n(&shared.tickets, 0, __ATOMIC_RELAXED);
    shared.phase.value.store(phase + 1, std::memory_order_release);
    shared.phase.value.notify_all();
    return;
  }
  int64_t& patience = shared.patience[worker].nanoseconds;
  const int64_t begun = now();
  await_change(shared.phase, phase, patience);
  if (spin_)
    patience = now() - begun < kLong ? kMostPatience : std::max(patience / 2, kLeastPatience);
}

void Pool::await_change(const Word& word, uint32_t old, int64_t patience) {
  const auto changed = [&] { return word.value.load(std::memory_order_acquire) != old; };
  if (changed()) return;
  for (const int64_t until = patience > 0 ? now() + patience : 0; until && now() < until;)
    for (int i = 0; i < 16; ++i) {
      if (changed()) return;
      relax();
    }
  while (!changed()) word.value.wait(old, std::memory_order_acquire);
}

}  // namespace seriatim
