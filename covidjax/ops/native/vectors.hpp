// The widest vectors of floats that the processor has, and what a product keeps of them in registers. Wider ones than
// the processor's would be correct, and several times as slow: the compiler moves their parts through memory.

#pragma once

#include <cstdint>

namespace vectors {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16, kRows = 8;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8, kRows = 6;
#else
constexpr int64_t kLanes = 4, kRows = 6;
#endif

constexpr int64_t kVectors = 2, kPanel = kVectors * kLanes;
constexpr int64_t kGroup = kLanes % kRows ? 3 * kLanes : kLanes;  // what both kLanes and kRows divide
static_assert(kGroup % kRows == 0);

constexpr int64_t kMultiple = 16;  // of features, as ../pooling.py and convolution.py have it: every kLanes divides it

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

inline int64_t Up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// out[kRows, kPanel] = (add ? out : 0) + a b; a's rows are `row` apart, its columns, `steps` many, `step` apart.
inline void Multiply(const float* a, int64_t row, int64_t step, const float* b, int64_t b_row, int64_t steps, bool add,
                     float* out, int64_t out_row) {
  Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{};
  for (int64_t s = 0; s < steps; ++s, a += step, b += b_row) {
    Vector right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = Load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] += a[r * row] * right[v];
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      float* const to = out + r * out_row + v * kLanes;
      Store(to, add ? Load(to) + sums[r][v] : sums[r][v]);  // last: sums of sums round less than one long sum
    }
}

}  // namespace vectors
