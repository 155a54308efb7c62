// Operations on float32 maps for XLA on a CPU, see README.md.
// Maps are [batch, height, width, features], kernels [height, width, in_features, features], as in covidjax.ops.

#include <omp.h>

#include <cstdint>
#include <list>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "batch_norm.hpp"
#include "call.hpp"
#include "direct.hpp"
#include "maxima.hpp"
#include "oneapi/dnnl/dnnl.hpp"
#include "winograd.hpp"

using dnnl::memory;
using Key = std::vector<int64_t>;
using Tag = memory::format_tag;

namespace {

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// ---- Convolution ----

struct Convolution {
  int64_t batch, height, width, in_features, out_height, out_width, features, rows, columns;
  int64_t strides[2], before[2], after[2];
  bool depthwise;

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
    depthwise = kernel[2] == 1 && in_features > 1 && features == in_features;
    Require((kernel[2] == in_features || depthwise) && outputs[3] == features && outputs[0] == batch,
            "features or batches differ");
  }

  Key key(int64_t kind) const {
    return {kind,      batch,     height,   width,      in_features,
            features,  rows,      columns,  strides[0], strides[1],
            before[0], before[1], after[0], after[1],   omp_get_max_threads(),
            depthwise};
  }
  memory::desc inputs() const { return {{batch, in_features, height, width}, memory::data_type::f32, Tag::nhwc}; }
  memory::desc outputs() const { return {{batch, features, out_height, out_width}, memory::data_type::f32, Tag::nhwc}; }
  memory::desc kernel(Tag tag) const {
    if (!depthwise) return {{features, in_features, rows, columns}, memory::data_type::f32, tag};
    return {{features, 1, 1, rows, columns}, memory::data_type::f32, tag == Tag::hwio ? Tag::hwigo : tag};
  }
  memory::desc bias() const { return {{features}, memory::data_type::f32, Tag::x}; }
  static memory::desc one() { return {{1, 1, 1, 1}, memory::data_type::f32, Tag::abcd}; }

  // Whether kernel gradients are those of direct.hpp: up to 3 times as fast as oneDNN's on AVX2, not compared on
  // AVX-512; oneDNN's are faster for 1x1 and for the few taps of a gray image.
  bool is_direct() const {
    return !depthwise && vectors::kLanes < 16 && features % vectors::kMultiple == 0 && rows * columns > 1 &&
           rows * columns * in_features >= 16;
  }
  direct::Convolution direct() const {
    return {batch,     height,   width, in_features, out_height,
            out_width, features, rows,  columns,     {strides[0], strides[1]},
            before[0], before[1]};
  }

  void RequireTiles() const {
    Require(rows == 3 && columns == 3 && !depthwise && strides[0] == strides[1] && strides[0] <= 2,
            "Winograd's is for 3x3 and strides of 1 or 2");
    Require(in_features % vectors::kMultiple == 0 && features % vectors::kMultiple == 0,
            "Winograd's is for multiples of 16 features");
  }
  template <typename Way>
  winograd::Convolution<Way> tiled() const {
    RequireTiles();
    return {batch, height, width, in_features, out_height, out_width, features, before[0], before[1]};
  }
  // Of the input gradient, whose inputs are the cotangent; the first tile begins so far above and left of it.
  template <typename Way>
  winograd::Convolution<Way> tiled_gradient(int64_t top, int64_t left) const {
    RequireTiles();
    return {batch, out_height, out_width, features, height, width, in_features, top, left, true};
  }
  // Tiles of the inputs begin where a middle tap met the output `first`, which is 0 for a padding of 1.
  winograd::Convolution<winograd::Spread> spread_gradient() const {
    const auto first = [](int64_t padding) { return padding > 0 ? (padding - 1) / 2 : -1; };
    const int64_t y = first(before[0]), x = first(before[1]);
    auto spread = tiled_gradient<winograd::Spread>(-y, -x);
    spread.out_top = before[0] - 1 - 2 * y, spread.out_left = before[1] - 1 - 2 * x;
    return spread;
  }
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
                              Integers geometry, bool relu, bool winograd) {
  return Guarded("convolution", {inputs.dimensions(), kernel.dimensions(), outputs->dimensions()}, [&] {
    const Convolution c(inputs.dimensions(), kernel.dimensions(), outputs->dimensions(), geometry);
    const bool biased = bias.element_count() > 0, added = residual.element_count() > 0;
    Require(!biased || bias.element_count() == size_t(c.features), "the bias does not fit the kernel");
    Require(!added || residual.element_count() == outputs->element_count(), "the residual does not fit the output");
    const auto run = [&](const auto& tiled) {
      const winograd::After after = {biased ? bias.typed_data() : nullptr, added ? residual.typed_data() : nullptr,
                                     relu};
      tiled.Run(inputs.typed_data(), kernel.typed_data(), after, outputs->typed_data(), Floats(tiled.scratch()));
    };
    if (winograd) return c.strides[0] == 1 ? run(c.tiled<winograd::Whole>()) : run(c.tiled<winograd::Strided>());
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

ffi::Error ConvolutionInputGradient(Map cotangent, Map kernel, ffi::Result<Map> gradient, Integers geometry,
                                    bool winograd) {
  const std::vector<Integers> shapes = {cotangent.dimensions(), kernel.dimensions(), gradient->dimensions()};
  return Guarded("input gradient of a convolution", shapes, [&] {
    const Convolution c(gradient->dimensions(), kernel.dimensions(), cotangent.dimensions(), geometry);
    const auto run = [&](const auto& tiled) {
      tiled.Run(cotangent.typed_data(), kernel.typed_data(), {}, gradient->typed_data(), Floats(tiled.scratch()));
    };
    if (winograd && c.strides[0] == 1) return run(c.tiled_gradient<winograd::Whole>(2 - c.before[0], 2 - c.before[1]));
    if (winograd) return run(c.spread_gradient());
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

ffi::Error ConvolutionKernelGradient(Map cotangent, Map inputs, ffi::Result<Map> gradient, Integers geometry,
                                     bool winograd) {
  const std::vector<Integers> shapes = {cotangent.dimensions(), inputs.dimensions(), gradient->dimensions()};
  return Guarded("kernel gradient of a convolution", shapes, [&] {
    const Convolution c(inputs.dimensions(), gradient->dimensions(), cotangent.dimensions(), geometry);
    const auto run = [&](const auto& ours) {
      ours.KernelGradient(inputs.typed_data(), cotangent.typed_data(), gradient->typed_data(),
                          Floats(ours.kernel_gradient_scratch()));
    };
    if (winograd) return c.strides[0] == 1 ? run(c.tiled<winograd::Whole>()) : run(c.tiled<winograd::Strided>());
    if (c.is_direct()) return run(c.direct());
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

// ---- Maxima ----

// geometry: the window, strides, then padding before and after, of height and width.
maxima::Windows Windows(Integers inputs, Integers outputs, Integers geometry) {
  Require(inputs.size() == 4 && outputs.size() == 4 && geometry.size() == 8, "wrong ranks");
  Require(inputs[0] == outputs[0] && inputs[3] == outputs[3], "features or batches differ");
  Require(inputs[3] % vectors::kMultiple == 0, "maxima are for multiples of 16 features");
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t window = geometry[axis], stride = geometry[2 + axis];
    const int64_t before = geometry[4 + 2 * axis], after = geometry[5 + 2 * axis];
    Require(window > 0 && stride > 0 && before >= 0 && after >= 0, "wrong windows, strides or padding");
    const int64_t room = inputs[1 + axis] + before + after - window;
    Require(room >= 0 && outputs[1 + axis] == room / stride + 1, "the output does not fit the input");
  }
  return {inputs[0],   inputs[1],   inputs[2],   inputs[3],   outputs[1],  outputs[2],
          geometry[0], geometry[1], geometry[2], geometry[3], geometry[4], geometry[6]};
}

ffi::Error MaxPool(Map inputs, ffi::Result<Map> outputs, Integers geometry) {
  return Guarded("maxima", {inputs.dimensions(), outputs->dimensions()}, [&] {
    Windows(inputs.dimensions(), outputs->dimensions(), geometry).Run(inputs.typed_data(), outputs->typed_data());
  });
}

ffi::Error MaxPoolGradient(Map inputs, Map outputs, Map cotangent, ffi::Result<Map> gradient, Integers geometry) {
  return Guarded("gradient of maxima", {inputs.dimensions(), cotangent.dimensions()}, [&] {
    Require(outputs.dimensions() == cotangent.dimensions(), "outputs and cotangent differ");
    Require(inputs.dimensions() == gradient->dimensions(), "inputs and gradient differ");
    Windows(inputs.dimensions(), outputs.dimensions(), geometry)
        .Gradient(inputs.typed_data(), outputs.typed_data(), cotangent.typed_data(), gradient->typed_data());
  });
}

// ---- Batch normalisation ----

normalisation::Normalisation Normalisation(const Map& inputs, std::vector<size_t> counts, float epsilon, bool relu) {
  const Integers shape = inputs.dimensions();
  Require(shape.size() >= 2 && inputs.element_count() > 0, "there is nothing to normalise");
  Require(shape.back() % vectors::kMultiple == 0, "batch normalisation is for multiples of 16 features");
  for (const size_t count : counts) Require(count == size_t(shape.back()), "an array does not fit the features");
  return {int64_t(inputs.element_count()) / shape.back(), shape.back(), epsilon, relu};
}

// relu(normalised * scale + bias + residual); a residual without elements is none.
ffi::Error BatchNorm(Map inputs, Map scale, Map bias, Map residual, ffi::Result<Map> outputs, ffi::Result<Map> mean,
                     ffi::Result<Map> variance, float epsilon, bool relu) {
  return Guarded("batch normalisation", {inputs.dimensions(), residual.dimensions()}, [&] {
    const bool added = residual.element_count() > 0;
    Require(outputs->dimensions() == inputs.dimensions(), "inputs and outputs differ");
    Require(!added || residual.dimensions() == inputs.dimensions(), "the residual does not fit the inputs");
    const auto norm = Normalisation(
        inputs, {scale.element_count(), bias.element_count(), mean->element_count(), variance->element_count()},
        epsilon, relu);
    norm.Run(inputs.typed_data(), scale.typed_data(), bias.typed_data(), added ? residual.typed_data() : nullptr,
             outputs->typed_data(), mean->typed_data(), variance->typed_data(), Floats(norm.scratch()));
  });
}

// outputs, of_residual: without elements, or what came of a residual and a ReLU, and the gradient of the former.
ffi::Error BatchNormGradient(Map cotangent, Map inputs, Map outputs, Map scale, Map bias, Map mean, Map variance,
                             ffi::Result<Map> of_inputs, ffi::Result<Map> of_scale, ffi::Result<Map> of_bias,
                             ffi::Result<Map> of_residual, float epsilon, bool relu) {
  return Guarded("gradient of batch normalisation", {inputs.dimensions(), cotangent.dimensions()}, [&] {
    const bool added = outputs.element_count() > 0;
    Require(cotangent.dimensions() == inputs.dimensions() && of_inputs->dimensions() == inputs.dimensions(),
            "inputs, cotangent and gradient differ");
    Require(of_residual->dimensions() == outputs.dimensions(), "outputs and the residual's gradient differ");
    Require(!added || (relu && outputs.dimensions() == inputs.dimensions()), "the outputs do not fit the inputs");
    const auto norm = Normalisation(inputs,
                                    {scale.element_count(), bias.element_count(), mean.element_count(),
                                     variance.element_count(), of_scale->element_count(), of_bias->element_count()},
                                    epsilon, relu);
    norm.Gradient(cotangent.typed_data(), inputs.typed_data(), added ? outputs.typed_data() : nullptr,
                  scale.typed_data(), bias.typed_data(), mean.typed_data(), variance.typed_data(),
                  of_inputs->typed_data(), of_scale->typed_data(), of_bias->typed_data(),
                  added ? of_residual->typed_data() : nullptr, Floats(norm.scratch()));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution, ConvolutionForward,
                              ffi::Ffi::Bind()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Ret<Map>()
                                  .Attr<Integers>("geometry")
                                  .Attr<bool>("relu")
                                  .Attr<bool>("winograd"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_input_gradient, ConvolutionInputGradient,
    ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Ret<Map>().Attr<Integers>("geometry").Attr<bool>("winograd"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_kernel_gradient, ConvolutionKernelGradient,
    ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Ret<Map>().Attr<Integers>("geometry").Attr<bool>("winograd"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(max_pool, MaxPool, ffi::Ffi::Bind().Arg<Map>().Ret<Map>().Attr<Integers>("geometry"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(max_pool_gradient, MaxPoolGradient,
                              ffi::Ffi::Bind().Arg<Map>().Arg<Map>().Arg<Map>().Ret<Map>().Attr<Integers>("geometry"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm, BatchNorm,
                              ffi::Ffi::Bind()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Arg<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>()
                                  .Ret<Map>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_gradient, BatchNormGradient,
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
                                  .Ret<Map>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));
