// Normalisation of a map [rows, features] by its own mean and variance with what follows it, and the gradient, as in
// ../batch_norm.py. Each pass over the map runs opposite to the one before, whose last part is still in the caches.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.hpp"

namespace normalisation {

using namespace vectors;

// features: a multiple of kMultiple.
struct Normalisation {
  int64_t rows, features;
  float epsilon;
  bool relu;

  size_t scratch() const { return (2 * slices() + 2) * features; }

  // residual: null for none.
  void Run(const float* inputs, const float* scale, const float* bias, const float* residual, float* outputs,
           float* mean, float* variance, float* scratch) const {
    const int64_t count = slices();
    float* const factor = scratch + 2 * count * features;
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
      for (int64_t slice = 0; slice < count; ++slice)
        Moments(inputs, first(slice, count), first(slice + 1, count), scratch + 2 * slice * features);
#pragma omp for
      for (int64_t c = 0; c < features; c += kLanes) {
        Vector level{}, spread{};
        for (int64_t slice = 0; slice < count; ++slice) {
          const float* const own = scratch + 2 * slice * features + c;
          const int64_t before = first(slice, count), own_rows = first(slice + 1, count) - before;
          Join(Load(own), Load(own + features), own_rows, before, level, spread);
        }
        Store(mean + c, level), Store(variance + c, spread / float(rows));
        for (int64_t i = c; i < c + kLanes; ++i) factor[i] = scale[i] / std::sqrt(variance[i] + epsilon);
      }
#pragma omp for schedule(dynamic)
      for (int64_t slice = count - 1; slice >= 0; --slice)
        for (int64_t row = first(slice, count), stop = first(slice + 1, count); row < stop; ++row)
          for (int64_t c = 0, at = row * features; c < features; c += kLanes, at += kLanes) {
            Vector value = Normalised(Load(inputs + at), mean + c, factor + c, bias + c);
            if (residual) value += Load(residual + at);
            Store(outputs + at, relu ? (value < 0 ? Vector{} : value) : value);  // what is no number stays none
          }
    }
  }

  // outputs, of_residual: null where nothing was added; else the cotangent of what was, which the ReLU let through.
  void Gradient(const float* cotangent, const float* inputs, const float* outputs, const float* scale,
                const float* bias, const float* mean, const float* variance, float* of_inputs, float* of_scale,
                float* of_bias, float* of_residual, float* scratch) const {
    float *const rate = scratch + 2 * slices() * features, *const factor = rate + features;
    for (int64_t c = 0; c < features; ++c)
      rate[c] = 1 / std::sqrt(variance[c] + epsilon), factor[c] = scale[c] * rate[c];
    const auto run = [&](auto passed) {
      Backward(cotangent, inputs, rate, factor, mean, of_inputs, of_scale, of_bias, of_residual, scratch, passed);
    };
    // What the ReLU let through of the cotangent of an element: without a residual its input tells.
    if (!relu) return run([](Vector value, Vector, int64_t, int64_t) { return value; });
    if (outputs)
      return run([=](Vector value, Vector, int64_t at, int64_t) { return Load(outputs + at) > 0 ? value : Vector{}; });
    run([=](Vector value, Vector input, int64_t, int64_t c) {
      return Normalised(input, mean + c, factor + c, bias + c) > 0 ? value : Vector{};
    });
  }

 private:
  template <typename Passed>
  void Backward(const float* cotangent, const float* inputs, const float* rate, const float* factor, const float* mean,
                float* of_inputs, float* of_scale, float* of_bias, float* of_residual, float* scratch,
                Passed passed) const {
    const int64_t count = slices();
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
      for (int64_t slice = 0; slice < count; ++slice) {
        float* const sums = scratch + 2 * slice * features;
        std::fill_n(sums, 2 * features, 0.f);
        for (int64_t start = first(slice, count), stop = first(slice + 1, count); start < stop; start += block()) {
          const int64_t end = std::min(start + block(), stop);
          for (int64_t c = 0; c < features; c += kMultiple) {
            Vector sum[kWide]{}, moment[kWide]{};
            for (int64_t row = start; row < end; ++row) {
              const int64_t at = row * features + c;
              __builtin_prefetch(inputs + at + block() * features);  // of the next block
              __builtin_prefetch(cotangent + at + block() * features);
              for (int v = 0; v < kWide; ++v) {
                const int64_t own = v * kLanes;
                const Vector input = Load(inputs + at + own);
                const Vector value = passed(Load(cotangent + at + own), input, at + own, c + own);
                if (of_residual) Store(of_residual + at + own, value);
                sum[v] += value, moment[v] += value * (input - Load(mean + c + own));
              }
            }
            for (int64_t v = 0, own = c; v < kWide; ++v, own += kLanes) {
              Store(sums + own, Load(sums + own) + sum[v]);
              Store(sums + features + own, Load(sums + features + own) + moment[v] * Load(rate + own));
            }
          }
        }
      }
#pragma omp for
      for (int64_t c = 0; c < features; c += kLanes) {
        Vector sum{}, moment{};
        for (int64_t slice = 0; slice < count; ++slice) {
          const float* const own = scratch + 2 * slice * features + c;
          sum += Load(own), moment += Load(own + features);
        }
        Store(of_bias + c, sum), Store(of_scale + c, moment);
      }
#pragma omp single
      for (int64_t c = 0; c < features; c += kLanes) {
        const Vector slope = Load(rate + c) * Load(of_scale + c) / float(rows), by = Load(factor + c);
        Store(scratch + c, by * slope);
        Store(scratch + features + c, by * (Load(of_bias + c) / float(rows) - slope * Load(mean + c)));
      }
#pragma omp for schedule(dynamic)
      for (int64_t slice = count - 1; slice >= 0; --slice)
        for (int64_t row = first(slice, count), stop = first(slice + 1, count); row < stop; ++row)
          for (int64_t c = 0, at = row * features; c < features; c += kLanes, at += kLanes) {
            const Vector input = Load(inputs + at);
            const Vector value = of_residual ? Load(of_residual + at) : passed(Load(cotangent + at), input, at, c);
            Store(of_inputs + at, Load(factor + c) * value - Load(scratch + c) * input - Load(scratch + features + c));
          }
    }
  }

  static Vector Normalised(Vector input, const float* mean, const float* factor, const float* bias) {
    return (input - Load(mean)) * Load(factor) + Load(bias);
  }

  static constexpr int kWide = kMultiple / kLanes;
  int64_t block() const { return std::max<int64_t>(8, 4096 / features); }  // rows that stay in a core's cache
  int64_t slices() const { return std::min<int64_t>((rows + block() - 1) / block(), 4 * omp_get_max_threads()); }
  // The first row of a slice of `count`, which is asked once and outside of the parallel region: within, OpenMP may
  // answer for a nested one.
  int64_t first(int64_t slice, int64_t count) const {
    return std::min(rows, Up(rows, block()) / block() * slice / count * block());
  }

  // Adds the mean and the sum of squares about it of `count` rows to those of `before` rows (Chan et al. 1979).
  static void Join(Vector mean, Vector squares, int64_t count, int64_t before, Vector& level, Vector& spread) {
    const Vector apart = mean - level;
    const float part = float(count) / float(before + count);
    level += apart * part;
    spread += squares + apart * apart * (float(before) * part);
  }

  // Mean and sum of squares about it of a slice, by blocks: squares about zero would cancel where the mean is large.
  void Moments(const float* inputs, int64_t from, int64_t stop, float* moments) const {
    std::fill_n(moments, 2 * features, 0.f);
    for (int64_t start = from; start < stop; start += block()) {
      const int64_t end = std::min(start + block(), stop);
      for (int64_t c = 0; c < features; c += kMultiple) {
        Vector mean[kWide]{}, squares[kWide]{};
        for (int64_t row = start; row < end; ++row) {
          const float* const at = inputs + row * features + c;
          __builtin_prefetch(at + block() * features);  // of the next block
          for (int v = 0; v < kWide; ++v) mean[v] += Load(at + v * kLanes);
        }
        for (int v = 0; v < kWide; ++v) mean[v] /= float(end - start);
        for (int64_t row = start; row < end; ++row)
          for (int v = 0; v < kWide; ++v) {
            const Vector apart = Load(inputs + row * features + c + v * kLanes) - mean[v];
            squares[v] += apart * apart;
          }
        for (int64_t v = 0, own = c; v < kWide; ++v, own += kLanes) {
          Vector level = Load(moments + own), spread = Load(moments + features + own);
          Join(mean[v], squares[v], end - start, start - from, level, spread);
          Store(moments + own, level), Store(moments + features + own, spread);
        }
      }
    }
  }
};

}  // namespace normalisation
