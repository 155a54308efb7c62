// 3x3 convolutions with strides of 1 or 2 by Winograd's transformations; features: multiples of kLanes. Transformed
// tiles never leave the core's cache: that is what it wins over the same products in XLA.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "points.hpp"

namespace winograd {

#ifdef __AVX512F__
constexpr int64_t kCache = 1 << 20;  // bytes of a core's, for the points of a block
#else
constexpr int64_t kCache = 1 << 18;
#endif
constexpr int64_t kShared = 5 << 20;  // bytes of the last cache, of which other programs have the rest

// What comes after the convolution; null: nothing.
struct After {
  const float *bias, *residual;
  bool relu;
};

// Arrays at the points are [points, tiles, features], with a vector between points: else all fall on one cache set.
template <typename Way>
struct Convolution {
  int64_t batch, height, width, in_features, out_height, out_width, features;
  int64_t top, left;                  // how far above and left of the inputs the first tile begins
  bool transposed = false;            // the kernel is that of the convolution whose input gradient this is
  int64_t out_top = 0, out_left = 0;  // how far above and left of the outputs

  static constexpr int64_t kTile = Way::Outputs::to, kSide = Way::Inputs::to, kPoints = kSide * kSide;
  static constexpr int64_t kKernelSide = Way::Kernel::to, kKernelPoints = kKernelSide * kKernelSide;

  int64_t columns() const { return (out_width + out_left + kTile - 1) / kTile; }
  int64_t rows() const { return (out_height + out_top + kTile - 1) / kTile; }
  int64_t tiles() const { return batch * rows() * columns(); }
  int64_t padded() const { return Up(features, kPanel); }
  int64_t block() const {  // tiles whose points fit into the cache of a core
    const int64_t fit = kCache / (kPoints * 4 * (in_features + features));
    const int64_t least = kSide > 6 ? 2 * kRows : tiles() >= 256 ? 2 * kLanes : 16;
    return Up(std::clamp<int64_t>(fit, least, 64), kRows);
  }
  bool by_panels() const { return 4 * tiles() <= features; }
  bool once() const { return tiles() <= kGradientBlock; }  // no sums over blocks, which may be larger than the caches
  size_t scratch() const {
    const int64_t threads = omp_get_max_threads();
    if (by_panels())
      return widest() + kPoints * (in_stride(Up(tiles(), kRows)) + threads * panel_stride()) +
             kKernelPoints * threads * kernel_stride();
    return widest() + kKernelPoints * part() * in_features +
           kPoints * threads * (in_stride(block()) + out_stride(block()));
  }
  size_t kernel_gradient_scratch() const {
    const int64_t sums = once() ? 0 : padded() * grouped();
    return widest() + kKernelPoints * sums + kPoints * (group_stride() + out_stride(kGradientBlock));
  }

  void Run(const float* inputs, const float* kernel, const After& after, float* outputs, float* scratch) const {
    std::fill_n(scratch, widest(), 0.f);
    const float* const zeros = scratch;
    scratch += widest();
    by_panels() ? ByPanels(inputs, kernel, after, outputs, zeros, scratch)
                : ByTiles(inputs, kernel, after, outputs, zeros, scratch);
  }

  // Features lie in groups, tile by tile in each: the columns of a product would else fall on few cache sets.
  void KernelGradient(const float* inputs, const float* cotangent, float* gradient, float* scratch) const {
    std::fill_n(scratch, widest(), 0.f);
    const float* const zeros = scratch;
    scratch += widest();
    const int64_t block = kGradientBlock, apart = group_stride(), out_apart = out_stride(block);
    float* const points = scratch + (once() ? 0 : kKernelPoints * padded() * grouped());
    float* const cotangent_points = points + kPoints * apart;
    // The products of a group of input features with a panel of outputs at the points of a kernel's.
    const auto multiply = [&](int64_t q, int64_t k, int64_t c, int64_t count, bool add, float* out, int64_t out_row) {
      for (int64_t i = q / kKernelSide; i < End(q / kKernelSide); ++i)
        for (int64_t j = q % kKernelSide; j < End(q % kKernelSide); ++j, add = true)
          for (int64_t r = 0, p = i * kSide + j; r < kGroup && c + r < in_features; r += kRows)
            Multiply(points + p * apart + c * block + r, 1, kGroup, cotangent_points + p * out_apart + k * block,
                     kPanel, count, add, out + r * out_row, out_row);
    };
#pragma omp parallel
    {
      for (int64_t first = 0; first < tiles(); first += block) {
        const int64_t count = std::min(block, tiles() - first);
#pragma omp for schedule(dynamic, 4)
        for (int64_t t = 0; t < count; ++t) {
          ReadInputs(inputs, first + t, zeros, points + t * kGroup, apart, kGroup, block);
          ReadCotangent(cotangent, first + t, zeros, cotangent_points + t * kPanel, out_apart, block);
        }
        if (once()) break;
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (int64_t q = 0; q < kKernelPoints; ++q)
          for (int64_t k = 0; k < padded(); k += kPanel)
            for (int64_t c = 0; c < in_features; c += kGroup)
              multiply(q, k, c, count, first > 0, scratch + (q * grouped() + c) * padded() + k, padded());
      }
#pragma omp for collapse(2) schedule(dynamic, 4)
      for (int64_t k = 0; k < padded(); k += kPanel)
        for (int64_t c = 0; c < in_features; c += kGroup) {
          float products[kKernelPoints * kGroup * kPanel];
          for (int64_t q = 0; q < kKernelPoints && once(); ++q)
            multiply(q, k, c, tiles(), false, products + q * kGroup * kPanel, kPanel);
          for (int64_t r = 0; r < kGroup && c + r < in_features; ++r)
            for (int64_t v = 0; v < kPanel && k + v < features; v += kLanes) {
              const float* const at = once() ? products + r * kPanel + v : scratch + (c + r) * padded() + k + v;
              WriteKernel(at, once() ? kGroup * kPanel : grouped() * padded(), c + r, k + v, gradient);
            }
        }
    }
  }

 private:
  static constexpr int64_t kGradientBlock = Way::kBlock, kChunk = 64;
  // Along an axis the points beyond the kernel's last share that one: pixels that meet the middle tap as they are.
  static int64_t End(int64_t side) { return side + 1 < kKernelSide ? side + 1 : kSide; }
  static int64_t OfKernel(int64_t p) {
    return std::min(p / kSide, kKernelSide - 1) * kKernelSide + std::min(p % kSide, kKernelSide - 1);
  }
  int64_t widest() const { return Up(std::max(in_features, features), kMultiple); }  // the zeros outside of the map
  int64_t grouped() const { return Up(in_features, kGroup); }
  int64_t group_stride() const { return kGradientBlock * grouped() + kLanes; }
  int64_t in_stride(int64_t tiles) const { return tiles * in_features + kLanes; }
  int64_t out_stride(int64_t tiles) const { return tiles * padded() + kLanes; }
  int64_t part() const {  // of the features: those whose kernel's points stay in the cache that cores share
    const int64_t panels = padded() / kPanel;
    const int64_t fit = std::max<int64_t>(1, kShared / (kKernelPoints * 4 * in_features * kPanel));
    const int64_t parts = (panels + fit - 1) / fit;
    return (panels + parts - 1) / parts * kPanel;
  }
  int64_t panel_stride() const { return Up(tiles(), kRows) * kPanel + kLanes; }
  static int64_t kernel_stride() { return kChunk * kPanel + kLanes; }

  // Many tiles: part by part the kernel is transformed, and tiles go through all three stages block by block.
  void ByTiles(const float* inputs, const float* kernel, const After& after, float* outputs, const float* zeros,
               float* scratch) const {
    const int64_t in = in_features, apart = in_stride(block()), out_apart = out_stride(block()), wide = part();
#pragma omp parallel
    {
      float* const points = scratch + kKernelPoints * wide * in + kPoints * omp_get_thread_num() * (apart + out_apart);
      float* const products = points + kPoints * apart;
      for (int64_t start = 0; start < padded(); start += wide) {
        const int64_t end = std::min(start + wide, padded());
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (int64_t k = start; k < end; k += kPanel)
          for (int64_t c = 0; c < in; c += kLanes)
            ReadKernel(kernel, c, k, scratch + (k - start) * in + c * kPanel, wide * in);
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < tiles(); first += block()) {
          const int64_t count = std::min(block(), tiles() - first), rows = Up(count, kRows);
          for (int64_t t = 0; t < rows; ++t) ReadInputs(inputs, first + t, zeros, points + t * in, apart, in, 0);
          for (int64_t p = 0; p < kPoints; ++p)
            for (int64_t k = start; k < end; k += kPanel)
              for (int64_t t = 0; t < rows; t += kRows)
                Multiply(points + p * apart + t * in, in, 1, scratch + OfKernel(p) * wide * in + (k - start) * in,
                         kPanel, in, false, products + p * out_apart + t * wide + k - start, wide);
          for (int64_t t = 0; t < count; ++t)
            for (int64_t k = start; k < std::min(end, features); k += kLanes)
              WriteOutputs(products + t * wide + k - start, out_apart, first + t, k, after, outputs);
        }
      }
    }
  }

  // Few tiles of many features: the inputs are transformed once, and the kernel, panel by panel, where it is used.
  void ByPanels(const float* inputs, const float* kernel, const After& after, float* outputs, const float* zeros,
                float* scratch) const {
    const int64_t in = in_features, rows = Up(tiles(), kRows), apart = in_stride(rows), out_apart = panel_stride();
#pragma omp parallel
    {
      const int64_t own = kKernelPoints * kernel_stride() + kPoints * panel_stride();
      float* const kernel_points = scratch + kPoints * apart + omp_get_thread_num() * own;
      float* const products = kernel_points + kKernelPoints * kernel_stride();
#pragma omp for schedule(dynamic, 4)
      for (int64_t t = 0; t < rows; ++t) ReadInputs(inputs, t, zeros, scratch + t * in, apart, in, 0);
#pragma omp for schedule(dynamic)
      for (int64_t k = 0; k < padded(); k += kPanel) {
        for (int64_t first = 0; first < in; first += kChunk) {
          const int64_t count = std::min(kChunk, in - first);
          for (int64_t c = 0; c < count; c += kLanes)
            ReadKernel(kernel, first + c, k, kernel_points + c * kPanel, kernel_stride());
          for (int64_t p = 0; p < kPoints; ++p)
            for (int64_t t = 0; t < rows; t += kRows)
              Multiply(scratch + p * apart + t * in + first, in, 1, kernel_points + OfKernel(p) * kernel_stride(),
                       kPanel, count, first > 0, products + p * out_apart + t * kPanel, kPanel);
        }
        for (int64_t t = 0; t < tiles(); ++t)
          for (int64_t v = 0; v < kPanel && k + v < features; v += kLanes)
            WriteOutputs(products + t * kPanel + v, out_apart, t, k + v, after, outputs);
      }
    }
  }

  struct Place {  // of a tile: an image, and its place among the image's
    int64_t image, row, column;
  };
  Place place(int64_t tile) const { return {tile / (rows() * columns()), tile / columns() % rows(), tile % columns()}; }

  // The points of a tile of pixels, of which those outside of the map are zeros. The points lie `apart` one another;
  // at each, features in groups of so many, the groups `count` tiles apart.
  template <typename Axis>
  static void ReadTile(const float* image, int64_t height, int64_t width, int64_t features, int64_t row, int64_t column,
                       const float* zeros, float* points, int64_t apart, int64_t group, int64_t count) {
    const float* pixels[Axis::from][Axis::from];
    for (int i = 0; i < Axis::from; ++i)
      for (int j = 0; j < Axis::from; ++j) {
        const int64_t y = row + i, x = column + j;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        pixels[i][j] = inside ? image + (y * width + x) * features : zeros;
      }
    for (int64_t first = 0; first < features; first += group, points += count * group)
      for (int64_t c = first; c < std::min(first + group, features); c += kLanes)
        Transform<Axis>([&](int i, int j) { return Load(pixels[i][j] + c); },
                        [&](int p, Vector value) { Store(points + p * apart + c - first, value); });
  }

  void ReadInputs(const float* inputs, int64_t tile, const float* zeros, float* points, int64_t apart, int64_t group,
                  int64_t count) const {
    const auto [image, row, column] = place(tile);  // beyond the last tile all pixels are outside
    const int64_t extent = image < batch ? height : 0;
    ReadTile<typename Way::Inputs>(inputs + image * height * width * in_features, extent, width, in_features,
                                   row * Way::kApart - top, column * Way::kApart - left, zeros, points, apart, group,
                                   count);
  }

  void ReadCotangent(const float* cotangent, int64_t tile, const float* zeros, float* points, int64_t apart,
                     int64_t count) const {
    const auto [image, row, column] = place(tile);
    ReadTile<typename Way::Cotangent>(cotangent + image * out_height * out_width * features, out_height, out_width,
                                      features, row * kTile, column * kTile, zeros, points, apart, kPanel, count);
  }

  // The points of the input features c to c + kLanes for the outputs k to k + kPanel: [kernel points, kLanes, kPanel].
  void ReadKernel(const float* kernel, int64_t c, int64_t k, float* points, int64_t apart) const {
    for (int64_t v = 0; v < kPanel && k + v < features; v += kLanes) {
      float turned[9 * kLanes * kLanes];  // the taps, whose input features run last in memory
      for (int64_t i = 0; transposed && i < 9 * kLanes; ++i)
        for (int64_t lane = 0, tap = i / kLanes, output = i % kLanes; lane < kLanes; ++lane)
          turned[(tap * kLanes + lane) * kLanes + output] =
              kernel[((8 - tap) * features + k + v + output) * in_features + c + lane];
      const float* const taps = transposed ? turned : kernel + c * features + k + v;
      const int64_t tap = transposed ? kLanes * kLanes : in_features * features, next = transposed ? kLanes : features;
      for (int64_t lane = 0; lane < kLanes; ++lane)
        Transform<typename Way::Kernel>(
            [&](int i, int j) { return Load(taps + (3 * i + j) * tap + lane * next); },
            [&](int p, Vector value) { Store(points + p * apart + lane * kPanel + v, value); });
    }
  }

  void WriteKernel(const float* points, int64_t apart, int64_t c, int64_t k, float* kernel) const {
    Transform<typename Way::KernelGradient>(
        [&](int i, int j) { return Load(points + (kKernelSide * i + j) * apart); },
        [&](int tap, Vector value) { Store(kernel + (tap * in_features + c) * features + k, value); });
  }

  void WriteOutputs(const float* points, int64_t apart, int64_t tile, int64_t k, const After& after,
                    float* outputs) const {
    const auto [image, row, column] = place(tile);
    const auto put = [&, row = row, column = column, image = image](int place, Vector value) {
      const int64_t y = row * kTile - out_top + place / kTile, x = column * kTile - out_left + place % kTile;
      if (y < 0 || x < 0 || y >= out_height || x >= out_width) return;
      const int64_t at = ((image * out_height + y) * out_width + x) * features + k;
      if (after.bias) value += Load(after.bias + k);
      if (after.residual) value += Load(after.residual + at);
      if (after.relu) value = value < 0 ? Vector{} : value;  // what is no number stays none
      Store(outputs + at, value);
    };
    Transform<typename Way::Outputs>([&](int i, int j) { return Load(points + (kSide * i + j) * apart); }, put);
  }
};

}  // namespace winograd
