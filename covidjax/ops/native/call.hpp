// What every operation is made of: one call at a time, its errors, the memory that calls share.

#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Map = ffi::Buffer<ffi::F32>;
using Integers = ffi::Span<const int64_t>;

namespace {

// One call at a time: each uses all threads of the process, so that several devices do not share cores among more
// threads than there are; and the arena and the primitives below belong to one call at a time.
std::mutex turn;

std::string Describe(Integers dimensions) {
  std::string text = "[";
  for (size_t i = 0; i < dimensions.size(); ++i) text += (i ? ", " : "") + std::to_string(dimensions[i]);
  return text + "]";
}

void Require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// Runs the body; whatever goes wrong becomes an error of XLA with the operation's name and shapes.
template <typename Body>
ffi::Error Guarded(const char* name, std::vector<Integers> shapes, Body body) {
  std::string why;
  try {
    std::lock_guard<std::mutex> lock(turn);
    body();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    why = "there is not enough memory";
  } catch (const std::exception& error) {
    why = error.what();
  }
  std::string told;
  for (const Integers& shape : shapes) told += (told.empty() ? "" : ", ") + Describe(shape);
  return ffi::Error::Internal(std::string("covidjax native ") + name + " of " + told + ": " + why);
}

constexpr size_t kHugePage = size_t{1} << 21;

// Memory that calls share, since they take turns; it grows to what the largest needs.
char* Arena(size_t bytes) {
  static std::unique_ptr<char, decltype(&std::free)> arena(nullptr, &std::free);
  static size_t held = 0;
  if (bytes > held) {
    arena.reset();
    held = 0;
    const size_t pages = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    arena.reset(static_cast<char*>(std::aligned_alloc(kHugePage, pages)));
    if (!arena) throw std::bad_alloc();
    madvise(arena.get(), pages, MADV_HUGEPAGE);  // refused: as it was
    held = pages;
  }
  return arena.get();
}

float* Floats(size_t count) { return reinterpret_cast<float*>(Arena(count * sizeof(float))); }

}  // namespace
