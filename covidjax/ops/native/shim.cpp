// Convolution, maximum pooling and batch normalisation of float32 maps for XLA on a CPU, see README.md.
// All maps are [batch, height, width, features], kernels [height, width, in_features, features], as in covidjax.ops.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Map = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;
using Integers = ffi::Span<const int64_t>;
using Key = std::vector<int64_t>;
using Tag = memory::format_tag;

namespace {

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

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
  } catch (const dnnl::error& error) {
    why = std::string("oneDNN: ") + error.what();
  } catch (const std::bad_alloc&) {
    why = "there is not enough memory";
  } catch (const std::exception& error) {
    why = error.what();
  }
  std::string told;
  for (const Integers& shape : shapes) told += (told.empty() ? "" : ", ") + Describe(shape);
  return ffi::Error::Internal(std::string("covidjax native ") + name + " of " + told + ": " + why);
}

// Memory that calls share, since they take turns; it grows to what the largest needs.
char* Arena(size_t bytes) {
  static std::unique_ptr<char, decltype(&std::free)> arena(nullptr, &std::free);
  static size_t held = 0;
  if (bytes > held) {
    arena.reset();
    held = 0;
    arena.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    if (!arena) throw std::bad_alloc();
    held = bytes;
  }
  return arena.get();
}

// ---- Convolution ----

struct Convolution {
  int64_t batch, height, width, in_features, out_height, out_width, features, rows, columns;
  int64_t strides[2], before[2], after[2];

  // geometry: strides, then padding before and after, of height and width.
  Convolution(Integers inputs, Integers kernel, Integers outputs, Integers geometry) {
    Require(inputs.size() == 4 && kernel.size() == 4 && outputs.size() == 4 && geometry.size() == 6, "wrong ranks");
    batch = inputs[0], height = inputs[1], width = inputs[2], in_features = inputs[3];
    rows = kernel[0], columns = kernel[1], features = kernel[3];
    out_height = outputs[1], out_width = outputs[2];
    for (int axis = 0; axis < 2; ++axis) {
      strides[axis] = geometry[axis], before[axis] = geometry[2 + 2 * axis], after[axis] = geometry[3 + 2 * axis];
      Require(strides[axis] > 0 && before[axis] >= 0 && after[axis] >= 0, "wrong strides or padding");
      const int64_t room = inputs[1 + axis] + before[axis] + after[axis] - kernel[axis];
      Require(room >= 0 && outputs[1 + axis] == room / strides[axis] + 1, "the output does not fit the input");
    }
    for (int axis = 0; axis < 4; ++axis) Require(inputs[axis] > 0 && kernel[axis] > 0, "an axis is empty");
    Require(kernel[2] == in_features && outputs[3] == features && outputs[0] == batch, "features or batches differ");
  }

  Key key(int64_t kind) const {
    return {kind,      batch,     height,   width,      in_features,
            features,  rows,      columns,  strides[0], strides[1],
            before[0], before[1], after[0], after[1],   omp_get_max_threads()};
  }
  memory::desc inputs() const { return {{batch, in_features, height, width}, memory::data_type::f32, Tag::nhwc}; }
  memory::desc outputs() const { return {{batch, features, out_height, out_width}, memory::data_type::f32, Tag::nhwc}; }
  memory::desc kernel(Tag tag) const { return {{features, in_features, rows, columns}, memory::data_type::f32, tag}; }
  memory::desc bias() const { return {{features}, memory::data_type::f32, Tag::x}; }
  static memory::desc one() { return {{1, 1, 1, 1}, memory::data_type::f32, Tag::abcd}; }
};

// A compiled convolution; the kernel is laid out anew for it, or from it, in the arena.
struct Compiled {
  dnnl::primitive run, reorder;
  memory::desc kernel, scratch;
  bool reordered = false;
};

// What was compiled last, the latest first; as many as a large network needs several times over.
constexpr size_t kKept = 1024;

template <typename Make>
Compiled& Cached(const Key& key, Make make) {
  static std::list<std::pair<Key, Compiled>> latest;
  static std::map<Key, decltype(latest)::iterator> found;
  const auto hit = found.find(key);
  if (hit != found.end()) {
    latest.splice(latest.begin(), latest, hit->second);
    return latest.front().second;
  }
  latest.emplace_front(key, make());
  found[key] = latest.begin();
  if (latest.size() > kKept) {
    found.erase(latest.back().first);
    latest.pop_back();
  }
  return latest.front().second;
}

dnnl::primitive_attr Attributes() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

enum Direction : int64_t { kForward, kOfInputs, kOfKernel };
constexpr int64_t kBias = 8, kRelu = 16, kResidual = 32;

dnnl::convolution_forward::primitive_desc Forward(const Convolution& c, int64_t flags) {
  auto attributes = Attributes();
  dnnl::post_ops after;
  if (flags & kResidual) after.append_binary(dnnl::algorithm::binary_add, c.outputs());
  if (flags & kRelu) after.append_prelu(0);  // with a slope of zero: oneDNN's relu makes zeros of what is no number
  attributes.set_post_ops(after);
  return {Engine(),
          dnnl::prop_kind::forward_training,
          dnnl::algorithm::convolution_direct,
          c.inputs(),
          c.kernel(Tag::any),
          flags & kBias ? c.bias() : memory::desc(),
          c.outputs(),
          {c.strides[0], c.strides[1]},
          {c.before[0], c.before[1]},
          {c.after[0], c.after[1]},
          attributes};
}

template <typename Description>
Compiled Finish(const Description& description, const memory::desc& kernel, const memory::desc& plain, bool into) {
  Compiled compiled;
  compiled.run = dnnl::primitive(description.get());
  compiled.kernel = kernel, compiled.scratch = description.scratchpad_desc();
  compiled.reordered = kernel != plain;
  if (compiled.reordered) {
    const auto& from = into ? plain : kernel;
    const auto& to = into ? kernel : plain;
    compiled.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  }
  return compiled;
}

// Runs with the kernel in the layout that the primitive wants: `kernel_role` says which argument it is.
void Run(Compiled& compiled, const Convolution& c, int kernel_role, float* kernel, bool into,
         std::unordered_map<int, memory> arguments) {
  dnnl::stream stream(Engine());
  const size_t own = compiled.reordered ? (compiled.kernel.get_size() + 63) / 64 * 64 : 0;
  char* arena = Arena(own + compiled.scratch.get_size());
  memory plain(c.kernel(Tag::hwio), Engine(), kernel);
  memory wanted = compiled.reordered ? memory(compiled.kernel, Engine(), arena) : plain;
  if (into && compiled.reordered) compiled.reorder.execute(stream, {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, wanted}});
  arguments[kernel_role] = wanted;
  arguments[DNNL_ARG_SCRATCHPAD] = memory(compiled.scratch, Engine(), arena + own);
  compiled.run.execute(stream, arguments);
  if (!into && compiled.reordered) compiled.reorder.execute(stream, {{DNNL_ARG_FROM, wanted}, {DNNL_ARG_TO, plain}});
  stream.wait();
}

memory Wrap(const memory::desc& description, const float* data) {
  return memory(description, Engine(), const_cast<float*>(data));
}

// relu(convolution + bias + residual); a bias or a residual without elements is none.
ffi::Error ConvolutionForward(Map inputs, Map kernel, Map bias, Map residual, ffi::Result<Map> outputs,
                              Integers geometry, bool relu) {
  return Guarded("convolution", {inputs.dimensions(), kernel.dimensions(), outputs->dimensions()}, [&] {
    const Convolution c(inputs.dimensions(), kernel.dimensions(), outputs->dimensions(), geometry);
    const bool biased = bias.element_count() > 0, added = residual.element_count() > 0;
    Require(!biased || bias.element_count() == size_t(c.features), "the bias does not fit the kernel");
    Require(!added || residual.element_count() == outputs->element_count(), "the residual does not fit the output");
    const int64_t flags = (biased ? kBias : 0) | (relu ? kRelu : 0) | (added ? kResidual : 0);
    Compiled& compiled = Cached(c.key(kForward | flags), [&] {
      const auto description = Forward(c, flags);
      return Finish(description, description.weights_desc(), c.kernel(Tag::hwio), true);
    });
    std::unordered_map<int, memory> arguments = {{DNNL_ARG_SRC, Wrap(c.inputs(), inputs.typed_data())},
                                                 {DNNL_ARG_DST, Wrap(c.outputs(), outputs->typed_data())}};
    if (biased) arguments[DNNL_ARG_BIAS] = Wrap(c.bias(), bias.typed_data());
    if (added) arguments[DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1] = Wrap(c.outputs(), residual.typed_data());
    static const float slope = 0;
    if (relu) arguments[DNNL_ARG_ATTR_MULTIPLE_POST_OP(added) | DNNL_ARG_WEIGHTS] = Wrap(c.one(), &slope);
    Run(compiled, c, DNNL_ARG_WEIGHTS, kernel.typed_data(), true, arguments);
  });
}

ffi::Error ConvolutionInputGradient(Map cotangent, Map kernel, ffi::Result<Map> gradient, Integers geometry) {
  const std::vector<Integers> shapes = {cotangent.dimensions(), kernel.dimensions(), gradient->dimensions()};
  return Guarded("input gradient of a convolution", shapes, [&] {
    const Convolution c(gradient->dimensions(), kernel.dimensions(), cotangent.dimensions(), geometry);
    Compiled& compiled = Cached(c.key(kOfInputs), [&] {
      const dnnl::convolution_backward_data::primitive_desc description(
          Engine(), dnnl::algorithm::convolution_direct, c.inputs(), c.kernel(Tag::any), c.outputs(),
          {c.strides[0], c.strides[1]}, {c.before[0], c.before[1]}, {c.after[0], c.after[1]}, Forward(c, 0),
          Attributes());
      return Finish(description, description.weights_desc(), c.kernel(Tag::hwio), true);
    });
    Run(compiled, c, DNNL_ARG_WEIGHTS, kernel.typed_data(), true,
        {{DNNL_ARG_DIFF_DST, Wrap(c.outputs(), cotangent.typed_data())},
         {DNNL_ARG_DIFF_SRC, Wrap(c.inputs(), gradient->typed_data())}});
  });
}

ffi::Error ConvolutionKernelGradient(Map cotangent, Map inputs, ffi::Result<Map> gradient, Integers geometry) {
  const std::vector<Integers> shapes = {cotangent.dimensions(), inputs.dimensions(), gradient->dimensions()};
  return Guarded("kernel gradient of a convolution", shapes, [&] {
    const Convolution c(inputs.dimensions(), gradient->dimensions(), cotangent.dimensions(), geometry);
    Compiled& compiled = Cached(c.key(kOfKernel), [&] {
      const dnnl::convolution_backward_weights::primitive_desc description(
          Engine(), dnnl::algorithm::convolution_direct, c.inputs(), c.kernel(Tag::any), c.outputs(),
          {c.strides[0], c.strides[1]}, {c.before[0], c.before[1]}, {c.after[0], c.after[1]}, Forward(c, 0),
          Attributes());
      return Finish(description, description.diff_weights_desc(), c.kernel(Tag::hwio), false);
    });
    Run(compiled, c, DNNL_ARG_DIFF_WEIGHTS, gradient->typed_data(), false,
        {{DNNL_ARG_SRC, Wrap(c.inputs(), inputs.typed_data())},
         {DNNL_ARG_DIFF_DST, Wrap(c.outputs(), cotangent.typed_data())}});
  });
}

// ---- Batch normalisation ----

// Rows that stay in the cache between two readings.
int64_t BlockRows(int64_t features) { return std::max<int64_t>(8, 4096 / features); }

// Calls body(thread, first, last) with an equal share of whole blocks of rows for each thread. The body may not throw.
template <typename Body>
void Shared(int64_t rows, int64_t block, int threads, Body body) {
  const int64_t blocks = (rows + block - 1) / block;
#pragma omp parallel num_threads(threads)
  {
    const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    body(part, std::min(rows, blocks * part / parts * block), std::min(rows, blocks * (part + 1) / parts * block));
  }
}

struct Normalised {
  int64_t rows, features;
  Normalised(Map inputs, Map scale, Map bias) {
    Require(inputs.dimensions().size() > 1 && inputs.element_count() > 0, "the map is empty");
    features = inputs.dimensions().back(), rows = inputs.element_count() / features;
    Require(scale.element_count() == size_t(features) && bias.element_count() == size_t(features), "features differ");
  }
};

// (inputs - mean) * rate * scale + bias + residual as one multiply-add; the backward pass needs the same sign again.
inline float Affine(float x, float factor, float offset) { return std::fma(x, factor, offset); }

ffi::Error NormForward(Map inputs, Map scale, Map bias, Map residual, ffi::Result<Map> outputs, ffi::Result<Map> means,
                       ffi::Result<Map> variances, float epsilon, bool relu) {
  return Guarded("batch normalisation", {inputs.dimensions()}, [&] {
    const Normalised n(inputs, scale, bias);
    const bool added = residual.element_count() > 0;
    Require(!added || residual.element_count() == inputs.element_count(), "the residual does not fit the map");
    const int64_t features = n.features, block = BlockRows(features);
    const int threads = omp_get_max_threads();
    const float *x = inputs.typed_data(), *other = residual.typed_data();
    // Of each thread: mean and sum of squared deviations of its rows, and how many these are (Chan et al. 1979).
    std::vector<double> parts(2 * threads * features, 0.0);
    std::vector<double> counts(threads, 0.0);
    std::vector<float> room(3 * threads * features);
    Shared(n.rows, block, threads, [&](int64_t thread, int64_t first, int64_t last) {
      double *mean = &parts[2 * thread * features], *squares = mean + features, count = 0;
      float *level = &room[3 * thread * features], *sum = level + features, *spread = sum + features;
      for (int64_t start = first; start < last; start += block) {
        const int64_t stop = std::min(last, start + block);
        std::fill(sum, sum + 2 * features, 0.f);
        for (int64_t row = start; row < stop; ++row) {
          for (int64_t f = 0; f < features; ++f) sum[f] += x[row * features + f];
        }
        for (int64_t f = 0; f < features; ++f) level[f] = sum[f] / float(stop - start);
        for (int64_t row = start; row < stop; ++row) {
          for (int64_t f = 0; f < features; ++f) {
            const float away = x[row * features + f] - level[f];
            spread[f] += away * away;
          }
        }
        const double more = double(stop - start), total = count + more, weight = more / total;
        for (int64_t f = 0; f < features; ++f) {
          const double away = double(level[f]) - mean[f];
          mean[f] += away * weight;
          squares[f] += double(spread[f]) + away * away * count * weight;
        }
        count = total;
      }
      counts[thread] = count;
    });
    std::vector<float> factor(features), offset(features);
    for (int64_t f = 0; f < features; ++f) {
      double mean = 0, squares = 0, count = 0;
      for (int thread = 0; thread < threads; ++thread) {
        if (counts[thread] == 0) continue;
        const double away = parts[2 * thread * features + f] - mean, total = count + counts[thread];
        mean += away * counts[thread] / total;
        squares += parts[(2 * thread + 1) * features + f] + away * away * count * counts[thread] / total;
        count = total;
      }
      means->typed_data()[f] = float(mean), variances->typed_data()[f] = float(squares / count);
      factor[f] = scale.typed_data()[f] / std::sqrt(float(squares / count) + epsilon);
      offset[f] = bias.typed_data()[f] - float(mean) * factor[f];
    }
    float* y = outputs->typed_data();
    Shared(n.rows, block, threads, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t at = first * features; at < last * features; at += features) {
        for (int64_t f = 0; f < features; ++f) {
          const float value = Affine(x[at + f], factor[f], offset[f]) + (added ? other[at + f] : 0.f);
          y[at + f] = relu && value < 0.f ? 0.f : value;
        }
      }
    });
  });
}

// outputs: of the forward pass where there was a residual, else without elements. masked: the cotangent behind the
// relu, which is the gradient of the residual; without elements where there was no residual or no relu.
ffi::Error NormBackward(Map inputs, Map scale, Map bias, Map means, Map variances, Map outputs, Map cotangent,
                        ffi::Result<Map> of_inputs, ffi::Result<Map> of_scale, ffi::Result<Map> of_bias,
                        ffi::Result<Map> masked, float epsilon, bool relu) {
  return Guarded("gradient of batch normalisation", {inputs.dimensions()}, [&] {
    const Normalised n(inputs, scale, bias);
    const bool seen = outputs.element_count() > 0, kept = masked->element_count() > 0;
    Require(seen || !kept, "the residual's gradient needs the outputs");
    for (size_t count : {cotangent.element_count(), seen ? outputs.element_count() : inputs.element_count(),
                         kept ? masked->element_count() : inputs.element_count(), of_inputs->element_count()}) {
      Require(count == inputs.element_count(), "the cotangent does not fit the map");
    }
    const int64_t features = n.features, block = BlockRows(features);
    const int threads = omp_get_max_threads();
    const float *x = inputs.typed_data(), *y = outputs.typed_data(), *g = cotangent.typed_data();
    float* mask = masked->typed_data();
    std::vector<float> factor(features), offset(features), rate(features), shift(features);
    for (int64_t f = 0; f < features; ++f) {
      factor[f] = scale.typed_data()[f] / std::sqrt(variances.typed_data()[f] + epsilon);
      offset[f] = bias.typed_data()[f] - means.typed_data()[f] * factor[f];
      rate[f] = 1.f / std::sqrt(variances.typed_data()[f] + epsilon);
      shift[f] = -means.typed_data()[f] * rate[f];
    }
    const auto behind = [&](int64_t at, int64_t f) {
      if (!relu) return g[at + f];
      const bool open = seen ? y[at + f] > 0.f : Affine(x[at + f], factor[f], offset[f]) > 0.f;
      return open ? g[at + f] : 0.f;
    };
    std::vector<double> parts(2 * threads * features, 0.0);
    std::vector<float> room(2 * threads * features);
    Shared(n.rows, block, threads, [&](int64_t thread, int64_t first, int64_t last) {
      float *sum = &room[2 * thread * features], *product = sum + features;
      for (int64_t start = first; start < last; start += block) {
        std::fill(sum, sum + 2 * features, 0.f);
        for (int64_t at = start * features; at < std::min(last, start + block) * features; at += features) {
          for (int64_t f = 0; f < features; ++f) {
            const float value = behind(at, f);
            sum[f] += value, product[f] += value * Affine(x[at + f], rate[f], shift[f]);
            if (kept) mask[at + f] = value;
          }
        }
        for (int64_t f = 0; f < features; ++f) {
          parts[2 * thread * features + f] += sum[f], parts[(2 * thread + 1) * features + f] += product[f];
        }
      }
    });
    std::vector<float> slope(features), level(features);
    for (int64_t f = 0; f < features; ++f) {
      double sum = 0, product = 0;
      for (int thread = 0; thread < threads; ++thread) {
        sum += parts[2 * thread * features + f], product += parts[(2 * thread + 1) * features + f];
      }
      of_bias->typed_data()[f] = float(sum), of_scale->typed_data()[f] = float(product);
      level[f] = float(sum / double(n.rows)), slope[f] = float(product / double(n.rows));
    }
    float* gradient = of_inputs->typed_data();
    Shared(n.rows, block, threads, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t at = first * features; at < last * features; at += features) {
        for (int64_t f = 0; f < features; ++f) {
          const float value = kept ? mask[at + f] : behind(at, f);
          gradient[at + f] = factor[f] * (value - level[f] - Affine(x[at + f], rate[f], shift[f]) * slope[f]);
        }
      }
    });
  });
}

// ---- Maximum pooling ----

struct Pooling {
  int64_t batch, height, width, features, out_height, out_width, window[2], strides[2], before[2];

  // geometry: window, strides, then padding before and after, of height and width.
  Pooling(Integers inputs, Integers outputs, Integers geometry) {
    Require(inputs.size() == 4 && outputs.size() == 4 && geometry.size() == 8, "wrong ranks");
    batch = inputs[0], height = inputs[1], width = inputs[2], features = inputs[3];
    out_height = outputs[1], out_width = outputs[2];
    Require(outputs[0] == batch && outputs[3] == features, "features or batches differ");
    for (int axis = 0; axis < 2; ++axis) {
      window[axis] = geometry[axis], strides[axis] = geometry[2 + axis], before[axis] = geometry[4 + 2 * axis];
      const int64_t after = geometry[5 + 2 * axis], room = inputs[1 + axis] + before[axis] + after - window[axis];
      Require(window[axis] > 0 && strides[axis] > 0 && room >= 0, "wrong window or strides");
      Require(before[axis] >= 0 && before[axis] < window[axis] && after >= 0 && after < window[axis], "wrong padding");
      Require(outputs[1 + axis] == room / strides[axis] + 1, "the output does not fit the input");
    }
    Require(window[0] * window[1] <= 255, "the window is too large");
  }
};

// places: of each maximum in its window, row by row; the first of equal ones, or the first that is no number.
ffi::Error PoolForward(Map inputs, ffi::Result<Map> outputs, ffi::Result<Bytes> places, Integers geometry) {
  return Guarded("maximum pooling", {inputs.dimensions(), outputs->dimensions()}, [&] {
    const Pooling p(inputs.dimensions(), outputs->dimensions(), geometry);
    Require(places->element_count() == outputs->element_count(), "places do not fit the output");
    const float* x = inputs.typed_data();
#pragma omp parallel for
    for (int64_t line = 0; line < p.batch * p.out_height; ++line) {
      const int64_t image = line / p.out_height, top = line % p.out_height * p.strides[0] - p.before[0];
      for (int64_t column = 0; column < p.out_width; ++column) {
        const int64_t left = column * p.strides[1] - p.before[1];
        float* y = outputs->typed_data() + (line * p.out_width + column) * p.features;
        uint8_t* place = places->typed_data() + (line * p.out_width + column) * p.features;
        std::fill(y, y + p.features, -INFINITY);
        bool fresh = true;
        for (int64_t tap = 0; tap < p.window[0] * p.window[1]; ++tap) {
          const int64_t row = top + tap / p.window[1], at = left + tap % p.window[1];
          if (row < 0 || row >= p.height || at < 0 || at >= p.width) continue;
          const float* value = x + ((image * p.height + row) * p.width + at) * p.features;
          for (int64_t f = 0; f < p.features; ++f) {
            const bool better = fresh || value[f] > y[f] || (value[f] != value[f] && y[f] == y[f]);
            y[f] = better ? value[f] : y[f];
            place[f] = better ? uint8_t(tap) : place[f];
          }
          fresh = false;
        }
      }
    }
  });
}

// Position by position of the input, what the windows give that it is in: no two threads write to the same place.
ffi::Error PoolBackward(Bytes places, Map cotangent, ffi::Result<Map> gradient, Integers geometry) {
  return Guarded("gradient of maximum pooling", {cotangent.dimensions(), gradient->dimensions()}, [&] {
    const Pooling p(gradient->dimensions(), cotangent.dimensions(), geometry);
    Require(places.element_count() == cotangent.element_count(), "places do not fit the cotangent");
    const auto first = [&](int axis, int64_t at) {
      return std::max<int64_t>(0, (at + p.before[axis] - p.window[axis]) / p.strides[axis] +
                                      (at + p.before[axis] >= p.window[axis] ? 1 : 0));
    };
#pragma omp parallel for
    for (int64_t line = 0; line < p.batch * p.height; ++line) {
      const int64_t image = line / p.height, row = line % p.height;
      const int64_t last_row = std::min(p.out_height - 1, (row + p.before[0]) / p.strides[0]);
      for (int64_t column = 0; column < p.width; ++column) {
        float* x = gradient->typed_data() + (line * p.width + column) * p.features;
        std::fill(x, x + p.features, 0.f);
        const int64_t last_column = std::min(p.out_width - 1, (column + p.before[1]) / p.strides[1]);
        for (int64_t r = first(0, row); r <= last_row; ++r) {
          for (int64_t c = first(1, column); c <= last_column; ++c) {
            const int64_t tap =
                (row + p.before[0] - r * p.strides[0]) * p.window[1] + column + p.before[1] - c * p.strides[1];
            const int64_t at = ((image * p.out_height + r) * p.out_width + c) * p.features;
            const uint8_t* place = places.typed_data() + at;
            const float* y = cotangent.typed_data() + at;
            for (int64_t f = 0; f < p.features; ++f) x[f] += place[f] == uint8_t(tap) ? y[f] : 0.f;
          }
        }
      }
    }
  });
}

}  // namespace

#define GEOMETRY .Attr<Integers>("geometry")
#define NORM_ATTRIBUTES .Attr<float>("epsilon").Attr<bool>("relu")
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution, ConvolutionForward,
                              ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Ret<Map>()
                                  GEOMETRY.Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_input_gradient, ConvolutionInputGradient,
                              ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Ret<Map>() GEOMETRY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_kernel_gradient, ConvolutionKernelGradient,
                              ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Ret<Map>() GEOMETRY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    batch_norm, NormForward,
    ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Ret<Map>().Ret<Map>().Ret<Map>() NORM_ATTRIBUTES);
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_gradient, NormBackward,
                              ffi::Ffi::Bind()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>() NORM_ATTRIBUTES);
XLA_FFI_DEFINE_HANDLER_SYMBOL(max_pool, PoolForward, ffi::Ffi::Bind().Arg<Map>().Ret<Map>().Ret<Bytes>() GEOMETRY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(max_pool_gradient, PoolBackward,
                              ffi::Ffi::Bind().Arg<Bytes>().Arg<Map>().Ret<Map>() GEOMETRY);
