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

constexpr int64_t kMultiple = 16;  // of features, as ../pooling.py and convolution.py have it: every kLanes divides it

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

}  // namespace vectors
