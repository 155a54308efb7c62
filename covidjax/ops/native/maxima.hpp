// Maxima over windows of a map [batch, height, width, features], and their gradient, as in ../pooling.py.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace maxima {

constexpr int64_t kChunk = 64;  // features at a time

struct Windows {
  int64_t batch, height, width, features, out_height, out_width;
  int64_t rows, columns, down, right, top, left;  // of a window; from one to the next; of the padding

  // Calls body(inputs' offset) for each position of a window that lies in the map, row by row.
  template <typename Body>
  void Visit(int64_t image, int64_t out_row, int64_t out_column, Body body) const {
    const int64_t first_row = out_row * down - top, first_column = out_column * right - left;
    for (int64_t y = std::max<int64_t>(first_row, 0); y < std::min(first_row + rows, height); ++y)
      for (int64_t x = std::max<int64_t>(first_column, 0); x < std::min(first_column + columns, width); ++x)
        body(((image * height + y) * width + x) * features);
  }

  void Run(const float* inputs, float* outputs) const {
#pragma omp parallel for collapse(2)
    for (int64_t image = 0; image < batch; ++image)
      for (int64_t row = 0; row < out_height; ++row)
        for (int64_t column = 0; column < out_width; ++column) {
          float* __restrict const largest = outputs + ((image * out_height + row) * out_width + column) * features;
          std::fill_n(largest, features, -std::numeric_limits<float>::infinity());
          Visit(image, row, column, [&](int64_t at) {
            const float* __restrict const each = inputs + at;
            // What is no number wins, and stays.
            for (int64_t c = 0; c < features; ++c)
              largest[c] = each[c] > largest[c] || each[c] != each[c] ? each[c] : largest[c];
          });
        }
  }

  // Images and chunks of features are independent of each other; windows overlap, so one thread takes all of them.
  void Gradient(const float* inputs, const float* outputs, const float* cotangent, float* gradient) const {
#pragma omp parallel for collapse(2)
    for (int64_t image = 0; image < batch; ++image)
      for (int64_t chunk = 0; chunk < features; chunk += kChunk) {
        const int64_t count = std::min(kChunk, features - chunk);
        int64_t cleared = 0;  // rows
        for (int64_t row = 0; row < out_height; ++row) {
          const int64_t next = row + 1 < out_height ? std::min(row * down - top + rows, height) : height;
          for (; cleared < next; ++cleared)
            for (int64_t x = 0; x < width; ++x)
              std::fill_n(gradient + ((image * height + cleared) * width + x) * features + chunk, count, 0.f);
          for (int64_t column = 0; column < out_width; ++column) {
            const int64_t place = ((image * out_height + row) * out_width + column) * features + chunk;
            float left_over[kChunk];  // of the cotangent, for the first position that holds the maximum
            std::copy_n(cotangent + place, count, left_over);
            Visit(image, row, column, [&](int64_t at) {
              const float* __restrict const each = inputs + at + chunk;
              float* __restrict const own = gradient + at + chunk;
              for (int64_t c = 0; c < count; ++c) {
                const bool taken = !(each[c] < outputs[place + c]);
                own[c] += taken ? left_over[c] : 0.f;
                left_over[c] = taken ? 0.f : left_over[c];
              }
            });
          }
        }
      }
  }
};

}  // namespace maxima
