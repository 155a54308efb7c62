// Maxima over windows of a map [batch, height, width, features], and their gradient, as in ../pooling.py.

#include <algorithm>
#include <cstdint>
#include <limits>

#include "vectors.hpp"

namespace maxima {

using namespace vectors;

// features: a multiple of kLanes.
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
        for (int64_t column = 0; column < out_width; ++column)
          for (int64_t c = 0; c < features; c += kLanes) {
            Vector largest = Vector{} - std::numeric_limits<float>::infinity();
            Visit(image, row, column, [&](int64_t at) {
              const Vector each = Load(inputs + at + c);
              largest = (each > largest) | (each != each) ? each : largest;  // what is no number wins, and stays
            });
            Store(outputs + ((image * out_height + row) * out_width + column) * features + c, largest);
          }
  }

  // Windows overlap, so one thread takes all of an image's.
  void Gradient(const float* inputs, const float* outputs, const float* cotangent, float* gradient) const {
#pragma omp parallel for
    for (int64_t image = 0; image < batch; ++image) {
      int64_t cleared = 0;  // rows
      for (int64_t row = 0; row < out_height; ++row) {
        const int64_t next = row + 1 < out_height ? std::clamp(row * down - top + rows, cleared, height) : height;
        std::fill_n(gradient + (image * height + cleared) * width * features, (next - cleared) * width * features, 0.f);
        cleared = next;
        for (int64_t column = 0; column < out_width; ++column)
          for (int64_t c = 0; c < features; c += kLanes) {
            const int64_t place = ((image * out_height + row) * out_width + column) * features + c;
            const Vector largest = Load(outputs + place);
            Vector left_over = Load(cotangent + place);  // for the first position that holds the maximum
            Visit(image, row, column, [&](int64_t at) {
              const auto less = Load(inputs + at + c) < largest;
              Store(gradient + at + c, Load(gradient + at + c) + (less ? Vector{} : left_over));
              left_over = less ? left_over : Vector{};
            });
          }
      }
    }
  }
};

}  // namespace maxima
