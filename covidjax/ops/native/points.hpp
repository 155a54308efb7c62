// Winograd's transformations along one axis, and what they make of two: F(4x4, 3x3) as in ../winograd.py, and for
// strides of 2 one whose odd pixels meet the outer taps in F(4, 2), and whose even ones the middle tap as they are.

#pragma once

#include <cstdint>

#include "vectors.hpp"

namespace winograd {

using namespace vectors;

constexpr float kA = 3.f / 4, kB = 3.f / 2, kA2 = kA * kA, kB2 = kB * kB, kProduct = kA2 * kB2, kSum = kA2 + kB2;
constexpr float kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2)), kOfZero = 1 / kProduct;

// The transformations along one axis: of what get(i) gives, each i put(i, value).

struct InputPoints {  // B.T
  static constexpr int from = 6, to = 6;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector d1 = get(1), d2 = get(2), d3 = get(3), d4 = get(4);
    const Vector even_a = d4 - kB2 * d2, odd_a = kA * (d3 - kB2 * d1);
    const Vector even_b = d4 - kA2 * d2, odd_b = kB * (d3 - kA2 * d1);
    put(0, kProduct * get(0) - kSum * d2 + d4), put(1, even_a + odd_a), put(2, even_a - odd_a);
    put(3, even_b + odd_b), put(4, even_b - odd_b), put(5, kProduct * d1 - kSum * d3 + get(5));
  }
};

struct KernelPoints {  // G
  static constexpr int from = 3, to = 6;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector g0 = get(0), g1 = get(1), g2 = get(2);
    const Vector even_a = kOfA * (g0 + kA2 * g2), odd_a = kOfA * kA * g1;
    const Vector even_b = kOfB * (g0 + kB2 * g2), odd_b = kOfB * kB * g1;
    put(0, kOfZero * g0), put(1, even_a + odd_a), put(2, even_a - odd_a);
    put(3, even_b + odd_b), put(4, even_b - odd_b), put(5, g2);
  }
};

struct KernelOfPoints {  // G.T
  static constexpr int from = 6, to = 3;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector v1 = get(1), v2 = get(2), v3 = get(3), v4 = get(4);
    const Vector even_a = kOfA * (v1 + v2), odd_a = kOfA * kA * (v1 - v2);
    const Vector even_b = kOfB * (v3 + v4), odd_b = kOfB * kB * (v3 - v4);
    put(0, kOfZero * get(0) + even_a + even_b), put(1, odd_a + odd_b);
    put(2, kA2 * even_a + kB2 * even_b + get(5));
  }
};

struct OutputsOfPoints {  // A.T
  static constexpr int from = 6, to = 4;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector m1 = get(1), m2 = get(2), m3 = get(3), m4 = get(4);
    const Vector even_a = m1 + m2, odd_a = kA * (m1 - m2), even_b = m3 + m4, odd_b = kB * (m3 - m4);
    put(0, get(0) + even_a + even_b), put(1, odd_a + odd_b);
    put(2, kA2 * even_a + kB2 * even_b), put(3, kA2 * odd_a + kB2 * odd_b + get(5));
  }
};

struct CotangentPoints {  // A
  static constexpr int from = 4, to = 6;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector y0 = get(0), y1 = get(1), y2 = get(2), y3 = get(3);
    const Vector even_a = y0 + kA2 * y2, odd_a = kA * (y1 + kA2 * y3);
    const Vector even_b = y0 + kB2 * y2, odd_b = kB * (y1 + kB2 * y3);
    put(0, y0), put(1, even_a + odd_a), put(2, even_a - odd_a);
    put(3, even_b + odd_b), put(4, even_b - odd_b), put(5, y3);
  }
};

// F(4, 2), at the points 0, 1, -1, 2 and infinity.
template <typename Put>
inline void PairInputs(Vector d0, Vector d1, Vector d2, Vector d3, Vector d4, Put put) {
  put(0, 2 * (d0 - d2) - (d1 - d3)), put(1, d3 - d2 - 2 * d1), put(2, d3 - 3 * d2 + 2 * d1);
  put(3, d3 - d1), put(4, d4 - d2 + 2 * (d1 - d3));
}

template <typename Get, typename Put>
inline void PairOutputs(Get get, Put put) {
  const Vector m1 = get(1), m2 = get(2), m3 = get(3), sum = m1 + m2, difference = m1 - m2;
  put(0, get(0) + sum + m3), put(1, difference + 2 * m3), put(2, sum + 4 * m3);
  put(3, difference + 8 * m3 + get(4));
}

struct StridedInputPoints {  // of nine pixels, the first of which meets the first tap
  static constexpr int from = 9, to = 9;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    PairInputs(get(0), get(2), get(4), get(6), get(8), put);
    for (int i = 0; i < 4; ++i) put(5 + i, get(2 * i + 1));
  }
};

struct StridedKernelPoints {
  static constexpr int from = 3, to = 6;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector g0 = get(0), g1 = get(2);
    put(0, 0.5f * g0), put(1, -0.5f * (g0 + g1)), put(2, (g1 - g0) * (1.f / 6));
    put(3, g0 * (1.f / 6) + g1 * (1.f / 3)), put(4, g1), put(5, get(1));
  }
};

struct StridedKernelOfPoints {
  static constexpr int from = 6, to = 3;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector m1 = get(1), m2 = get(2), m3 = get(3);
    put(0, 0.5f * (get(0) - m1) + (m3 - m2) * (1.f / 6)), put(1, get(5));
    put(2, m2 * (1.f / 6) + m3 * (1.f / 3) - 0.5f * m1 + get(4));
  }
};

struct StridedOutputsOfPoints {
  static constexpr int from = 9, to = 4;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    PairOutputs(get, [&](int i, Vector value) { put(i, value + get(5 + i)); });
  }
};

struct StridedCotangentPoints {
  static constexpr int from = 4, to = 9;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    const Vector y0 = get(0), y1 = get(1), y2 = get(2), y3 = get(3), even = y0 + y2, odd = y1 + y3;
    put(0, y0), put(1, even + odd), put(2, even - odd), put(3, y0 + 2 * y1 + 4 * y2 + 8 * y3), put(4, y3);
    put(5, y0), put(6, y1), put(7, y2), put(8, y3);
  }
};

struct SpreadInputPoints {  // of five pixels of the strided convolution's cotangent
  static constexpr int from = 5, to = 9;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    PairInputs(get(0), get(1), get(2), get(3), get(4), put);
    for (int i = 0; i < 4; ++i) put(5 + i, get(i));
  }
};

struct SpreadOutputsOfPoints {  // eight pixels of its input gradient, the first of which met a middle tap
  static constexpr int from = 9, to = 8;
  template <typename Get, typename Put>
  static void Apply(Get get, Put put) {
    PairOutputs(get, [&](int i, Vector value) { put(2 * i + 1, value); });
    for (int i = 0; i < 4; ++i) put(2 * i, get(5 + i));
  }
};

// A way: its transformations along each axis, how far apart the inputs of neighbouring tiles begin, and how many tiles
// the gradient of a kernel takes at a time.
struct Whole {
  using Inputs = InputPoints;
  using Kernel = KernelPoints;
  using Outputs = OutputsOfPoints;
  using Cotangent = CotangentPoints;
  using KernelGradient = KernelOfPoints;
  static constexpr int64_t kApart = 4, kBlock = 128;
};

struct Strided {
  using Inputs = StridedInputPoints;
  using Kernel = StridedKernelPoints;
  using Outputs = StridedOutputsOfPoints;
  using Cotangent = StridedCotangentPoints;
  using KernelGradient = StridedKernelOfPoints;
  static constexpr int64_t kApart = 8, kBlock = 32;
};

struct Spread {  // the input gradient of a strided convolution
  using Inputs = SpreadInputPoints;
  using Kernel = StridedKernelPoints;
  using Outputs = SpreadOutputsOfPoints;
  static constexpr int64_t kApart = 4, kBlock = 0;
};

// Along both axes: of get(row, column), [from, from], to put(place, value), [to * to].
template <typename Axis, typename Get, typename Put>
inline __attribute__((always_inline)) void Transform(Get get, Put put) {
  Vector half[Axis::to * Axis::from];
  for (int j = 0; j < Axis::from; ++j)
    Axis::Apply([&](int i) { return get(i, j); }, [&](int i, Vector value) { half[i * Axis::from + j] = value; });
  for (int i = 0; i < Axis::to; ++i)
    Axis::Apply([&](int j) { return half[i * Axis::from + j]; },
                [&](int j, Vector value) { put(i * Axis::to + j, value); });
}

}  // namespace winograd
