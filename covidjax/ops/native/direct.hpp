// Kernel gradients of any kernel and strides, for multiples of 16 features: sums of products of the inputs, of which a
// row of taps is one run of memory, and the cotangent.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "vectors.hpp"

namespace direct {

using namespace vectors;

struct Convolution {
  int64_t batch, height, width, in_features, out_height, out_width, features, rows, columns;
  int64_t strides[2], top, left;  // top, left: of the padding

  size_t kernel_gradient_scratch() const {
    return padded_size() + slices() * sums() + omp_get_max_threads() * kPixels * (kGroup + Up(features, kPanel));
  }

  // Pixels of the outputs are taken kPixels at a time; a slice of them has sums of its own, which are added at the end.
  // How many slices: asked once, here, since within a parallel region OpenMP may answer for a nested one.
  void KernelGradient(const float* inputs, const float* cotangent, float* gradient, float* scratch) const {
    float* const all = scratch + padded_size();
    const int64_t out = Up(features, kPanel), count = slices(), size = sums();
#pragma omp parallel
    {
      const float* const padded = Pad(inputs, scratch);
      float* const group = all + count * size + omp_get_thread_num() * kPixels * (kGroup + out);
      std::fill_n(group, kPixels * kGroup, 0.f);
#pragma omp for schedule(dynamic)
      for (int64_t slice = 0; slice < count; ++slice) {
        const int64_t first = slice * blocks() / count, end = (slice + 1) * blocks() / count;
        for (int64_t block = first; block < end; ++block)
          Add(padded, cotangent, block * kPixels, block > first, group, all + slice * size);
      }
#pragma omp for
      for (int64_t tap = 0; tap < rows * run(); ++tap)
        for (int64_t k = 0; k < features; k += kLanes) {
          const float* const at = all + (tap / run() * grouped() + tap % run()) * out + k;
          Vector sum = Load(at);
          for (int64_t slice = 1; slice < count; ++slice) sum += Load(at + slice * size);
          Store(gradient + tap * features + k, sum);
        }
    }
  }

 private:
  static constexpr int64_t kPixels = 128;

  int64_t run() const { return columns * in_features; }  // what an output sees of a row
  int64_t grouped() const { return Up(run(), kGroup); }
  int64_t sums() const { return rows * grouped() * Up(features, kPanel); }
  int64_t pixels() const { return batch * out_height * out_width; }
  int64_t blocks() const { return (pixels() + kPixels - 1) / kPixels; }
  int64_t slices() const {  // several to a thread, so that none waits long for another; few where their sums are large
    const int64_t threads = omp_get_max_threads(), fit = (int64_t{1} << 20) / sums();
    return std::min(blocks(), std::clamp(fit, threads, 4 * threads));
  }

  // The inputs with zeros around them, or as they are.
  int64_t seen_height() const { return (out_height - 1) * strides[0] + rows; }
  int64_t seen_width() const { return (out_width - 1) * strides[1] + columns; }
  bool padded() const {
    return top || left || seen_height() > height || seen_width() > width || in_features % kMultiple;
  }
  int64_t row() const { return (padded() ? seen_width() : width) * in_features; }
  int64_t image() const { return (padded() ? seen_height() : height) * row(); }
  int64_t padded_size() const { return padded() ? batch * image() + kGroup : 0; }  // vectors reach beyond the last run

  const float* Pad(const float* inputs, float* scratch) const {
    if (!padded()) return inputs;
    const int64_t right = std::min(width, seen_width() - left);
#pragma omp for
    for (int64_t line = 0; line < batch * seen_height(); ++line) {
      const int64_t y = line % seen_height() - top;
      const bool inside = y >= 0 && y < height && right > 0;
      const float* const from = inputs + (line / seen_height() * height + y) * width * in_features;
      float* to = scratch + line * row();
      float* const end = to + row();
      to = std::fill_n(to, inside ? left * in_features : 0, 0.f);
      to = std::copy_n(from, inside ? right * in_features : 0, to);
      std::fill(to, end, 0.f);
    }
    std::fill_n(scratch + batch * image(), kGroup, 0.f);
    return scratch;
  }

  // Adds what the outputs from `start` on give; panels of the cotangent come after the group.
  void Add(const float* padded, const float* cotangent, int64_t start, bool add, float* group, float* to) const {
    const int64_t count = std::min(kPixels, pixels() - start), out = Up(features, kPanel);
    float* const panels = group + kPixels * kGroup;
    int64_t at[kPixels];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = (start + i) / out_width, x = (start + i) % out_width;
      at[i] = y / out_height * image() + y % out_height * strides[0] * row() + x * strides[1] * in_features;
      for (int64_t k = 0; k < features; k += kLanes)
        Store(panels + k / kPanel * kPanel * kPixels + i * kPanel + k % kPanel,
              Load(cotangent + (start + i) * features + k));
    }
    for (int64_t tap = 0; tap < rows; ++tap)
      for (int64_t c = 0; c < run(); c += kGroup) {
        const int64_t wide = std::min(kGroup, run() - c);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t v = 0; v < wide; v += kLanes)
            Store(group + i * kGroup + v, Load(padded + at[i] + tap * row() + c + v));
        for (int64_t k = 0; k < features; k += kPanel)
          for (int64_t r = 0; r < wide; r += kRows)
            Multiply(group + r, 1, kGroup, panels + k * kPixels, kPanel, count, add,
                     to + (tap * grouped() + c + r) * out + k, out);
      }
  }
};

}  // namespace direct
