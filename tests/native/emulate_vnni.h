// vpdpbusd in plain C++, by the pseudocode of Intel's manual, in place of the intrinsics: proves
// the kernels of VNNI where no processor has it. Include before csrc.
#pragma once
#include <immintrin.h>

#include <cstdint>

template <class Register>
inline Register emulated_dpbusd(Register sum, Register a, Register b) {
  constexpr int kLanes = sizeof(Register) / 4;
  uint32_t sums[kLanes];
  uint8_t unsigned_bytes[4 * kLanes];
  int8_t signed_bytes[4 * kLanes];
  __builtin_memcpy(sums, &sum, sizeof sums);
  __builtin_memcpy(unsigned_bytes, &a, sizeof unsigned_bytes);
  __builtin_memcpy(signed_bytes, &b, sizeof signed_bytes);
  for (int i = 0; i < 4 * kLanes; ++i)
    sums[i / 4] += static_cast<uint32_t>(int32_t{unsigned_bytes[i]} * int32_t{signed_bytes[i]});
  __builtin_memcpy(&sum, sums, sizeof sums);
  return sum;
}

#define _mm256_dpbusd_avx_epi32 emulated_dpbusd<__m256i>
#define _mm512_dpbusd_epi32 emulated_dpbusd<__m512i>
