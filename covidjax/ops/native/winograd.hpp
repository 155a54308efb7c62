// 3x3 convolutions by Winograd's F(4x4, 3x3), as in ../winograd.py, whose points these are; features: multiples of 16.
// Transformed tiles never leave the core's cache: that is what it wins over the same products in XLA.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace winograd {

typedef float Vector __attribute__((vector_size(64), aligned(4)));
constexpr int64_t kLanes = 16, kTile = 4, kPoints = 36;
#ifdef __AVX512F__
constexpr int64_t kRows = 8, kVectors = 2;  // of a product that is held in registers
#else
constexpr int64_t kRows = 4, kVectors = 1;
#endif
constexpr int64_t kPanel = kVectors * kLanes;
constexpr float kA = 3.f / 4, kB = 3.f / 2, kA2 = kA * kA, kB2 = kB * kB, kProduct = kA2 * kB2, kSum = kA2 + kB2;
constexpr float kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2)), kOfZero = 1 / kProduct;

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline int64_t Up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The transformations along one axis, from parts `s` apart to parts `r` apart.

struct InputPoints {  // B.T
  static constexpr int from = 6, to = 6;
  static void Apply(const Vector* d, int s, Vector* v, int r) {
    const Vector d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s];
    const Vector even_a = d4 - kB2 * d2, odd_a = kA * (d3 - kB2 * d1);
    const Vector even_b = d4 - kA2 * d2, odd_b = kB * (d3 - kA2 * d1);
    v[0] = kProduct * d[0] - kSum * d2 + d4, v[r] = even_a + odd_a, v[2 * r] = even_a - odd_a;
    v[3 * r] = even_b + odd_b, v[4 * r] = even_b - odd_b, v[5 * r] = kProduct * d1 - kSum * d3 + d[5 * s];
  }
};

struct KernelPoints {  // G
  static constexpr int from = 3, to = 6;
  static void Apply(const Vector* g, int s, Vector* v, int r) {
    const Vector even_a = kOfA * (g[0] + kA2 * g[2 * s]), odd_a = kOfA * kA * g[s];
    const Vector even_b = kOfB * (g[0] + kB2 * g[2 * s]), odd_b = kOfB * kB * g[s];
    v[0] = kOfZero * g[0], v[r] = even_a + odd_a, v[2 * r] = even_a - odd_a;
    v[3 * r] = even_b + odd_b, v[4 * r] = even_b - odd_b, v[5 * r] = g[2 * s];
  }
};

struct KernelOfPoints {  // G
  static constexpr int from = 6, to = 3;
  static void Apply(const Vector* v, int s, Vector* g, int r) {
    const Vector even_a = kOfA * (v[s] + v[2 * s]), odd_a = kOfA * kA * (v[s] - v[2 * s]);
    const Vector even_b = kOfB * (v[3 * s] + v[4 * s]), odd_b = kOfB * kB * (v[3 * s] - v[4 * s]);
    g[0] = kOfZero * v[0] + even_a + even_b, g[r] = odd_a + odd_b;
    g[2 * r] = kA2 * even_a + kB2 * even_b + v[5 * s];
  }
};

struct OutputsOfPoints {  // A.T
  static constexpr int from = 6, to = 4;
  static void Apply(const Vector* m, int s, Vector* y, int r) {
    const Vector even_a = m[s] + m[2 * s], odd_a = kA * (m[s] - m[2 * s]);
    const Vector even_b = m[3 * s] + m[4 * s], odd_b = kB * (m[3 * s] - m[4 * s]);
    y[0] = m[0] + even_a + even_b, y[r] = odd_a + odd_b;
    y[2 * r] = kA2 * even_a + kB2 * even_b, y[3 * r] = kA2 * odd_a + kB2 * odd_b + m[5 * s];
  }
};

struct CotangentPoints {  // A
  static constexpr int from = 4, to = 6;
  static void Apply(const Vector* y, int s, Vector* m, int r) {
    const Vector even_a = y[0] + kA2 * y[2 * s], odd_a = kA * (y[s] + kA2 * y[3 * s]);
    const Vector even_b = y[0] + kB2 * y[2 * s], odd_b = kB * (y[s] + kB2 * y[3 * s]);
    m[0] = y[0], m[r] = even_a + odd_a, m[2 * r] = even_a - odd_a;
    m[3 * r] = even_b + odd_b, m[4 * r] = even_b - odd_b, m[5 * r] = y[3 * s];
  }
};

// Along both axes: [from, from] -> [to, to].
template <typename Axis>
void Transform(const Vector* from, Vector* to) {
  Vector half[Axis::to * Axis::from];
  for (int i = 0; i < Axis::from; ++i) Axis::Apply(from + i, Axis::from, half + i, Axis::from);
  for (int i = 0; i < Axis::to; ++i) Axis::Apply(half + i * Axis::from, 1, to + i * Axis::to, 1);
}

// out[kRows, kPanel] = (add ? out : 0) + a b; a's rows are `row` apart, its columns, `steps` many, `step` apart.
inline void Multiply(const float* a, int64_t row, int64_t step, const float* b, int64_t b_row, int64_t steps, bool add,
                     float* out, int64_t out_row) {
  Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = add ? Load(out + r * out_row + v * kLanes) : Vector{};
  for (int64_t s = 0; s < steps; ++s, a += step, b += b_row) {
    Vector right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = Load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] += a[r * row] * right[v];
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) Store(out + r * out_row + v * kLanes, sums[r][v]);
}

// What comes after the convolution; null: nothing.
struct After {
  const float *bias, *residual;
  bool relu;
};

// Arrays at the points are [36, tiles, features], with a vector between points: else all 36 fall on one cache set.
struct Convolution {
  int64_t batch, height, width, in_features, out_height, out_width, features, top, left;  // top, left: of the padding
  bool transposed;  // the kernel is that of the convolution whose input gradient this is

  int64_t columns() const { return (out_width + kTile - 1) / kTile; }
  int64_t rows() const { return (out_height + kTile - 1) / kTile; }
  int64_t tiles() const { return batch * rows() * columns(); }
  int64_t padded() const { return Up(features, kPanel); }
  int64_t block() const {  // tiles whose points fit into the cache of a core
    const int64_t least = tiles() >= 256 ? 32 : 16;
    return std::clamp<int64_t>((1 << 20) / (kPoints * 4 * (in_features + features)) / 16 * 16, least, 64);
  }
  bool by_panels() const { return 4 * tiles() <= features; }
  bool once() const { return tiles() <= kGradientBlock; }  // no sums over blocks, which may be larger than the caches
  size_t scratch() const {
    const int64_t threads = omp_get_max_threads();
    if (by_panels()) return kPoints * (in_stride(Up(tiles(), kRows)) + threads * (kernel_stride() + panel_stride()));
    return kPoints * (padded() * in_features + threads * (in_stride(block()) + out_stride(block())));
  }
  size_t gradient_scratch() const {
    const int64_t sums = once() ? 0 : padded() * in_features;
    return kPoints * (sums + in_stride(kGradientBlock) + out_stride(kGradientBlock));
  }

  void Run(const float* inputs, const float* kernel, const After& after, float* outputs, float* scratch) const {
    by_panels() ? ByPanels(inputs, kernel, after, outputs, scratch) : ByTiles(inputs, kernel, after, outputs, scratch);
  }

  void KernelGradient(const float* inputs, const float* cotangent, float* gradient, float* scratch) const {
    const int64_t block = kGradientBlock, in = in_features, apart = in_stride(block), out_apart = out_stride(block);
    float* const points = scratch + (once() ? 0 : kPoints * padded() * in);
    float* const cotangent_points = points + kPoints * apart;
    const auto multiply = [&](int64_t p, int64_t k, int64_t c, int64_t count, bool add, float* out, int64_t out_row) {
      Multiply(points + p * apart + c, 1, in, cotangent_points + p * out_apart + k, padded(), count, add, out, out_row);
    };
#pragma omp parallel
    {
      for (int64_t first = 0; first < tiles(); first += block) {
        const int64_t count = std::min(block, tiles() - first);
#pragma omp for
        for (int64_t t = 0; t < count; ++t) {
          ReadInputs(inputs, first + t, points + t * in, apart);
          ReadCotangent(cotangent, first + t, cotangent_points + t * padded(), out_apart);
        }
        if (once()) break;
#pragma omp for collapse(2)
        for (int64_t p = 0; p < kPoints; ++p)
          for (int64_t k = 0; k < padded(); k += kPanel)
            for (int64_t c = 0; c < in; c += kRows)
              multiply(p, k, c, count, first > 0, scratch + (p * in + c) * padded() + k, padded());
      }
#pragma omp for collapse(2)
      for (int64_t k = 0; k < padded(); k += kPanel)
        for (int64_t c = 0; c < in; c += kRows) {
          float products[kPoints * kRows * kPanel];
          for (int64_t p = 0; p < kPoints && once(); ++p)
            multiply(p, k, c, tiles(), false, products + p * kRows * kPanel, kPanel);
          for (int64_t r = 0; r < kRows; ++r)
            for (int64_t v = 0; v < kPanel && k + v < features; v += kLanes) {
              const float* const at = once() ? products + r * kPanel + v : scratch + (c + r) * padded() + k + v;
              WriteKernel(at, once() ? kRows * kPanel : in * padded(), c + r, k + v, gradient);
            }
        }
    }
  }

 private:
  static constexpr int64_t kGradientBlock = 128, kChunk = 64;
  int64_t in_stride(int64_t tiles) const { return tiles * in_features + kLanes; }
  int64_t out_stride(int64_t tiles) const { return tiles * padded() + kLanes; }
  int64_t panel_stride() const { return Up(tiles(), kRows) * kPanel + kLanes; }
  static int64_t kernel_stride() { return kChunk * kPanel + kLanes; }

  // Many tiles: the kernel is transformed once, and tiles go through all three stages block by block.
  void ByTiles(const float* inputs, const float* kernel, const After& after, float* outputs, float* scratch) const {
    const int64_t in = in_features, apart = in_stride(block()), out_apart = out_stride(block());
#pragma omp parallel
    {
      float* const points =
          scratch + kPoints * (padded() * in + omp_get_thread_num() * (in_stride(block()) + out_stride(block())));
      float* const products = points + kPoints * apart;
#pragma omp for collapse(2)
      for (int64_t k = 0; k < padded(); k += kPanel)
        for (int64_t c = 0; c < in; ++c) ReadKernel(kernel, c, k, scratch + k * in + c * kPanel, padded() * in);
#pragma omp for schedule(dynamic)
      for (int64_t first = 0; first < tiles(); first += block()) {
        const int64_t count = std::min(block(), tiles() - first), rows = Up(count, kRows);
        for (int64_t t = 0; t < rows; ++t) ReadInputs(inputs, first + t, points + t * in, apart);
        for (int64_t p = 0; p < kPoints; ++p)
          for (int64_t k = 0; k < padded(); k += kPanel)
            for (int64_t t = 0; t < rows; t += kRows)
              Multiply(points + p * apart + t * in, in, 1, scratch + (p * padded() + k) * in, kPanel, in, false,
                       products + p * out_apart + t * padded() + k, padded());
        for (int64_t t = 0; t < count; ++t)
          for (int64_t k = 0; k < features; k += kLanes)
            WriteOutputs(products + t * padded() + k, out_apart, first + t, k, after, outputs);
      }
    }
  }

  // Few tiles of many features: the inputs are transformed once, and the kernel, panel by panel, where it is used.
  void ByPanels(const float* inputs, const float* kernel, const After& after, float* outputs, float* scratch) const {
    const int64_t in = in_features, rows = Up(tiles(), kRows), apart = in_stride(rows), out_apart = panel_stride();
#pragma omp parallel
    {
      float* const kernel_points =
          scratch + kPoints * (apart + omp_get_thread_num() * (kernel_stride() + panel_stride()));
      float* const products = kernel_points + kPoints * kernel_stride();
#pragma omp for
      for (int64_t t = 0; t < rows; ++t) ReadInputs(inputs, t, scratch + t * in, apart);
#pragma omp for schedule(dynamic)
      for (int64_t k = 0; k < padded(); k += kPanel) {
        for (int64_t first = 0; first < in; first += kChunk) {
          const int64_t count = std::min(kChunk, in - first);
          for (int64_t c = 0; c < count; ++c)
            ReadKernel(kernel, first + c, k, kernel_points + c * kPanel, kernel_stride());
          for (int64_t p = 0; p < kPoints; ++p)
            for (int64_t t = 0; t < rows; t += kRows)
              Multiply(scratch + p * apart + t * in + first, in, 1, kernel_points + p * kernel_stride(), kPanel, count,
                       first > 0, products + p * out_apart + t * kPanel, kPanel);
        }
        for (int64_t t = 0; t < tiles(); ++t)
          for (int64_t v = 0; v < kPanel && k + v < features; v += kLanes)
            WriteOutputs(products + t * kPanel + v, out_apart, t, k + v, after, outputs);
      }
    }
  }

  struct Place {  // of a tile: an image, and its first output
    int64_t image, row, column;
  };
  Place place(int64_t tile) const {
    return {tile / (rows() * columns()), tile / columns() % rows() * kTile, tile % columns() * kTile};
  }

  // The points of a tile of `size` x `size` pixels, of which those outside of the map are zeros; `apart` one another.
  template <typename Axis>
  static void ReadTile(const float* image, int64_t height, int64_t width, int64_t features, int64_t row, int64_t column,
                       float* points, int64_t apart) {
    constexpr int size = Axis::from;
    for (int64_t c = 0; c < features; c += kLanes) {
      Vector tile[size * size], found[kPoints];
      for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j) {
          const int64_t y = row + i, x = column + j;
          const bool inside = y >= 0 && y < height && x >= 0 && x < width;
          tile[i * size + j] = inside ? Load(image + (y * width + x) * features + c) : Vector{};
        }
      Transform<Axis>(tile, found);
      for (int p = 0; p < kPoints; ++p) Store(points + p * apart + c, found[p]);
    }
  }

  void ReadInputs(const float* inputs, int64_t tile, float* points, int64_t apart) const {
    const auto [image, row, column] = place(tile);  // beyond the last tile all pixels are outside
    const int64_t extent = image < batch ? height : 0;
    ReadTile<InputPoints>(inputs + image * height * width * in_features, extent, width, in_features, row - top,
                          column - left, points, apart);
  }

  void ReadCotangent(const float* cotangent, int64_t tile, float* points, int64_t apart) const {
    const auto [image, row, column] = place(tile);
    ReadTile<CotangentPoints>(cotangent + image * out_height * out_width * features, out_height, out_width, features,
                              row, column, points, apart);
    for (int p = 0; p < kPoints; ++p) std::fill_n(points + p * apart + features, padded() - features, 0.f);
  }

  // The points of one input feature for the outputs k to k + kPanel.
  void ReadKernel(const float* kernel, int64_t c, int64_t k, float* points, int64_t apart) const {
    for (int64_t v = 0; v < kPanel; v += kLanes) {
      Vector taps[9] = {}, found[kPoints];
      for (int tap = 0; k + v < features && tap < 9; ++tap)
        if (transposed)
          for (int lane = 0; lane < kLanes; ++lane)
            taps[tap][lane] = kernel[((8 - tap) * features + k + v + lane) * in_features + c];
        else
          taps[tap] = Load(kernel + (tap * in_features + c) * features + k + v);
      Transform<KernelPoints>(taps, found);
      for (int p = 0; p < kPoints; ++p) Store(points + p * apart + v, found[p]);
    }
  }

  void WriteKernel(const float* points, int64_t apart, int64_t c, int64_t k, float* kernel) const {
    Vector found[kPoints], taps[9];
    for (int p = 0; p < kPoints; ++p) found[p] = Load(points + p * apart);
    Transform<KernelOfPoints>(found, taps);
    for (int tap = 0; tap < 9; ++tap) Store(kernel + (tap * in_features + c) * features + k, taps[tap]);
  }

  void WriteOutputs(const float* points, int64_t apart, int64_t tile, int64_t k, const After& after,
                    float* outputs) const {
    const auto [image, row, column] = place(tile);
    Vector found[kPoints], values[kTile * kTile];
    for (int p = 0; p < kPoints; ++p) found[p] = Load(points + p * apart);
    Transform<OutputsOfPoints>(found, values);
    for (int64_t y = row; y < std::min(row + kTile, out_height); ++y)
      for (int64_t x = column; x < std::min(column + kTile, out_width); ++x) {
        const int64_t at = ((image * out_height + y) * out_width + x) * features + k;
        Vector value = values[(y - row) * kTile + x - column];
        if (after.bias) value += Load(after.bias + k);
        if (after.residual) value += Load(after.residual + at);
        if (after.relu) value = value < 0 ? Vector{} : value;  // what is no number stays none
        Store(outputs + at, value);
      }
  }
};

}  // namespace winograd
