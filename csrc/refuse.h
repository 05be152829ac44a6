// How the runtime says no: std::invalid_argument, which Python sees as a ValueError.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace seriatim {

using std::to_string;

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

inline void require(bool fine, const char* what) {
  if (!fine) refuse(what);
}

inline bool is_choice(int64_t value, size_t choices) {
  return value >= 0 && value < static_cast<int64_t>(choices);
}

}  // namespace seriatim
